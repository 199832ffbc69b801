//! Events of one socket to one record. Pure: time comes with the events and with [`Joiner::tick`].
//!
//! A story begins with the first sign of the end and is complete when the socket is released. It is
//! told then, or when it has waited for the join timeout; a story told early is remembered until
//! the release, for the sake of who notices late. The two ends of a connection within this host are
//! told together.

mod partners;
mod story;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
};

use self::{
    partners::Partners,
    story::{Story, Told},
};
use crate::model::{After, AfterKind, End, EndKind, Event, Fin, Record, Seen, SockId, Stray, Teardown};

/// After an orphan's release, how long its RST may take to follow: it is sent by the same
/// function, before the segment that provoked it is freed.
const RESET_FOLLOWS_NS: u64 = 1_000_000;
/// How long the other end of a connection may take to end too, beside two round trips.
const PARTNER_FOLLOWS_NS: u64 = 10_000_000;

/// Stories by socket, bounded.
#[derive(Debug)]
pub struct Joiner {
    timeout_ns: u64,
    capacity: usize,
    stories: HashMap<SockId, Story>,
    /// The latest life of each socket: a RST that follows the destruction comes without more.
    latest: HashMap<u64, SockId>,
    /// Ends that may find their other end.
    partners: Partners,
    /// Untold stories in the order of their beginning; entries of finished ones are skipped.
    waiting: VecDeque<(u64, SockId)>,
    /// Released sockets whose RST may still follow, or whose other end may still end.
    settling: BinaryHeap<Reverse<(u64, SockId)>>,
    /// Told but unreleased, oldest first; entries of finished ones are skipped.
    remembered: VecDeque<SockId>,
    evicted: u64,
}

impl Joiner {
    /// `timeout_ns`: how long an incomplete story waits; `capacity`: how many are held.
    pub fn new(timeout_ns: u64, capacity: usize) -> Self {
        Self {
            timeout_ns,
            capacity: capacity.max(1),
            stories: HashMap::new(),
            latest: HashMap::new(),
            partners: Partners::default(),
            waiting: VecDeque::new(),
            settling: BinaryHeap::new(),
            remembered: VecDeque::new(),
            evicted: 0,
        }
    }

    /// Stories given up for want of room, told or not.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Takes one event; completed records go to `out`.
    pub fn push(&mut self, event: Event, out: &mut Vec<Record>) {
        match event {
            Event::End(end) => self.end(end, out),
            Event::After(after) => self.after(after, out),
            // Right behind the end, and perhaps again before the release.
            Event::Http(seen) => {
                if let Some(story) = self.story(seen.id) {
                    story.http = seen.http;
                }
            }
            Event::Exec(_) => {}
            Event::Stray(stray) => out.push(Record::Teardown(Box::new(stray_record(stray)))),
        }
    }

    /// The end that an event follows, as long as it is remembered.
    pub fn end_of(&self, after: &After) -> Option<&End> {
        self.story_of(after).map(Story::end)
    }

    /// When [`Joiner::tick`] has something to do next.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        let waiting = self.waiting.front().map(|&(at, _)| at);
        let settling = self.settling.peek().map(|&Reverse((at, _))| at);
        [waiting, settling].into_iter().flatten().min()
    }

    /// Tells what has waited long enough. `now_ns` must not be later than events still unread.
    pub fn tick(&mut self, now_ns: u64, out: &mut Vec<Record>) {
        while let Some(&Reverse((at, id))) = self.settling.peek()
            && at <= now_ns
        {
            self.settling.pop();
            self.complete(id, at, out);
        }
        while let Some(&(at, id)) = self.waiting.front()
            && at <= now_ns
        {
            self.waiting.pop_front();
            if self.story(id).is_some_and(|story| !story.told()) {
                self.tell(id, Told::Waited, out);
            }
        }
    }

    /// Tells everything untold, as it stands.
    pub fn finish(&mut self, out: &mut Vec<Record>) {
        while let Some((_, id)) = self.waiting.pop_front() {
            if self.story(id).is_some_and(|story| !story.told()) {
                self.tell(id, Told::Waited, out);
            }
        }
        self.stories.clear();
        self.latest.clear();
        self.partners = Partners::default();
        self.settling.clear();
        self.remembered.clear();
    }

    fn story(&mut self, id: SockId) -> Option<&mut Story> {
        self.stories.get_mut(&id)
    }

    fn story_of(&self, after: &After) -> Option<&Story> {
        // A RST that follows the destruction comes without the birth time, which is gone.
        if after.id.born_ns != 0 {
            return self.stories.get(&after.id);
        }
        self.stories.get(self.latest.get(&after.id.sk)?).filter(|story| story.released())
    }

    fn end(&mut self, end: Box<End>, out: &mut Vec<Record>) {
        let id = end.id;
        let (gone, ts_ns) = (end.gone, end.ts_ns);
        if end.untracked {
            // Nothing that follows can be matched to it.
            out.push(Record::Teardown(Box::new(Story::new(end).tell(Told::Untracked, None))));
            return;
        }
        // The address has a new life. What is untold and unreleased has lost its release.
        if let Some(stale) = self.latest.insert(id.sk, id)
            && self.story(stale).is_some_and(|story| !story.released())
        {
            if self.story(stale).is_some_and(|story| !story.told()) {
                self.tell(stale, Told::Untracked, out);
            }
            self.forget(stale);
        }
        if self.stories.len() >= self.capacity {
            self.evict(out);
        }
        if self.waiting.len() > 2 * self.stories.len() + 1024 {
            // A long timeout must not keep the entries of what is finished.
            let stories = &self.stories;
            self.waiting.retain(|(_, id)| stories.contains_key(id));
        }
        self.waiting.push_back((ts_ns.saturating_add(self.timeout_ns), id));
        let partner = self.partners.find(&end, |id| self.stories.get(&id).map(Story::end));
        let mut story = Story::new(end);
        story.partner = partner;
        match partner.and_then(|partner| self.stories.get_mut(&partner)) {
            Some(other) => {
                other.partner = Some(id);
                self.partners.remove(other.end());
            }
            None => self.partners.add(story.end()),
        }
        if gone {
            // No release follows.
            story.release(ts_ns, None, None, false, false, None);
        }
        self.stories.insert(id, story);
        if gone {
            self.complete(id, ts_ns, out);
        }
    }

    fn after(&mut self, after: After, out: &mut Vec<Record>) {
        let Some(id) = self.story_of(&after).map(Story::id) else { return };
        let Some(story) = self.story(id) else { return };
        match after.kind {
            AfterKind::Observed { errno } => {
                if let Some(late) = story.observed(after.ts_ns, after.task, errno) {
                    out.push(late);
                }
            }
            AfterKind::ResetSent { reason, answer, segment_bytes } => {
                story.reset_sent(after.ts_ns, after.task, reason, answer, segment_bytes);
                if story.released() {
                    self.complete(id, after.ts_ns, out);
                }
            }
            AfterKind::Closed { errno } => story.closed(errno),
            AfterKind::Released { untaken, observation_lost, reset_lost, reopened, unread } => {
                if reset_lost {
                    story.reset_sent(after.ts_ns, None, None, false, None);
                }
                story.release(after.ts_ns, after.task, untaken, observation_lost, reopened, unread);
                if story.reset_may_follow() {
                    self.settling.push(Reverse((after.ts_ns.saturating_add(RESET_FOLLOWS_NS), id)));
                } else {
                    self.complete(id, after.ts_ns, out);
                }
            }
        }
    }

    /// All is known of this end: it is told, unless its other end may still appear.
    fn complete(&mut self, id: SockId, now_ns: u64, out: &mut Vec<Record>) {
        let timeout_ns = self.timeout_ns;
        let Some(story) = self.story(id) else { return };
        match story.partner_may_follow_until_ns(PARTNER_FOLLOWS_NS, timeout_ns) {
            Some(until) if until > now_ns => self.settling.push(Reverse((until, id))),
            _ => self.settled(id, out),
        }
    }

    /// Nothing more is waited for but the other end's release, where there is one.
    fn settled(&mut self, id: SockId, out: &mut Vec<Record>) {
        let Some(story) = self.story(id) else { return };
        if story.told() {
            out.extend(story.concluded_late());
            self.retire(id);
            return;
        }
        let partner = story.partner;
        // The join timeout ends this wait too.
        let open = partner.and_then(|partner| self.story(partner)).is_some_and(|other| !other.told() && !other.released());
        if !open {
            self.tell(id, Told::Complete, out);
        }
    }

    /// Tells a story, and its other half with it.
    fn tell(&mut self, id: SockId, why: Told, out: &mut Vec<Record>) {
        let Some(partner) = self.story(id).map(|story| story.partner) else { return };
        let untold = partner.filter(|&partner| self.story(partner).is_some_and(|other| !other.told()));
        let first = self.tell_half(id, why);
        let second = untold.and_then(|partner| self.tell_half(partner, Told::Waited));
        out.extend(match (first, second) {
            (Some(first), Some(second)) => Some(Record::Pair(Box::new([first, second]))),
            (first, second) => first.or(second).map(|half| Record::Teardown(Box::new(half))),
        });
        self.retire(id);
        if let Some(partner) = untold {
            self.retire(partner);
        }
    }

    fn tell_half(&mut self, id: SockId, why: Told) -> Option<Teardown> {
        let story = self.stories.get(&id)?;
        let other = story.partner.and_then(|partner| self.stories.get(&partner));
        let peer = other.map(|other| other.as_peer(story.end()));
        let story = self.story(id)?;
        let why = if story.released() { Told::Complete } else { why };
        Some(story.tell(why, peer))
    }

    /// A story that is told is remembered until its socket is released, for who notices late, and
    /// until its other half is told.
    fn retire(&mut self, id: SockId) {
        let Some(story) = self.story(id) else { return };
        let (released, partner) = (story.released(), story.partner);
        if !released {
            self.remember(id);
        } else if partner.and_then(|partner| self.story(partner)).is_none_or(|other| other.told()) {
            self.forget(id);
        }
    }

    fn forget(&mut self, id: SockId) {
        let Some(story) = self.stories.remove(&id) else { return };
        self.partners.remove(story.end());
        if self.latest.get(&id.sk) == Some(&id) {
            self.latest.remove(&id.sk);
        }
    }

    fn remember(&mut self, id: SockId) {
        self.remembered.push_back(id);
        // Entries of released sockets are dropped now and then, not searched for.
        if self.remembered.len() > 2 * self.stories.len() + 1024 {
            let stories = &self.stories;
            self.remembered.retain(|id| stories.contains_key(id));
        }
    }

    /// Makes room: first what is told and only remembered, oldest first; then what still waits.
    fn evict(&mut self, out: &mut Vec<Record>) {
        while let Some(id) = self.remembered.pop_front() {
            if self.story(id).is_some() {
                self.forget(id);
                self.evicted += 1;
                return;
            }
        }
        while let Some((_, id)) = self.waiting.pop_front() {
            if self.story(id).is_some() {
                self.tell(id, Told::Untracked, out);
                self.forget(id);
                self.evicted += 1;
                return;
            }
        }
    }
}

/// A RST that ended no full socket is a record of its own: nobody holds it, nobody observes it.
fn stray_record(stray: Stray) -> Teardown {
    Teardown {
        at_ns: stray.ts_ns,
        end: EndKind::ResetSent,
        local: stray.local,
        remote: stray.remote,
        netns: stray.netns,
        cookie: None,
        inode: None,
        role: None,
        state: stray.state,
        age_ns: None,
        idle: None,
        bytes: None,
        rtt_us: None,
        retransmits: None,
        reason: stray.reason,
        owner: None,
        observer: None,
        seen: Seen::Never,
        closer: None,
        released: None,
        released_ns: None,
        fin: Fin::default(),
        evidence: None,
        segment: stray.segment,
        peer: None,
        http: None,
    }
}

#[cfg(test)]
mod tests;
