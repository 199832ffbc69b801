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
    collections::{BinaryHeap, VecDeque},
};

use foldhash::HashMap;
use slotmap::{SlotMap, new_key_type};

use self::{
    partners::Partners,
    story::{Story, Told},
};
use crate::{
    model::{After, AfterKind, End, EndKind, Event, Fin, Record, Seen, SockId, Stray, Teardown},
    spare::Spare,
};

/// After an orphan's release, how long its RST may take to follow: it is sent by the same
/// function, before the segment that provoked it is freed.
const RESET_FOLLOWS_NS: u64 = 1_000_000;
/// How long the other end of a connection may take to end too, beside two round trips.
const PARTNER_FOLLOWS_NS: u64 = 10_000_000;

new_key_type! {
    /// A story's place; never another's.
    struct Key;
}

/// Stories by socket, bounded.
#[derive(Debug)]
pub struct Joiner {
    timeout_ns: u64,
    capacity: usize,
    stories: SlotMap<Key, Story>,
    /// By the socket's address its latest life: of earlier ones nothing more can come.
    latest: HashMap<u64, Key>,
    /// Ends that may find their other end.
    partners: Partners,
    /// Untold stories in the order of their beginning; entries of finished ones are skipped.
    waiting: VecDeque<(u64, Key)>,
    /// Released sockets whose RST may still follow, or whose other end may still end.
    settling: BinaryHeap<Reverse<(u64, Key)>>,
    /// Told but unreleased, oldest first; entries of finished ones are skipped.
    remembered: VecDeque<Key>,
    evicted: u64,
    /// Of stories that are told and forgotten.
    pub spare_ends: Spare<End>,
    /// Of records that are written.
    pub spare_teardowns: Spare<Teardown>,
}

impl Joiner {
    /// `timeout_ns`: how long an incomplete story waits; `capacity`: how many are held.
    pub fn new(timeout_ns: u64, capacity: usize) -> Self {
        Self {
            timeout_ns,
            capacity: capacity.max(1),
            stories: SlotMap::with_key(),
            latest: HashMap::default(),
            partners: Partners::default(),
            waiting: VecDeque::new(),
            settling: BinaryHeap::new(),
            remembered: VecDeque::new(),
            evicted: 0,
            spare_ends: Spare::default(),
            spare_teardowns: Spare::default(),
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
                if let Some(story) = self.find(seen.id).and_then(|key| self.stories.get_mut(key)) {
                    story.http = seen.http;
                }
            }
            Event::Exec(_) => {}
            Event::Stray(stray) => out.push(Record::Teardown(self.spare_teardowns.fill(stray_record(stray)))),
        }
    }

    /// The end that an event follows, as long as it is remembered.
    pub fn end_of(&self, after: &After) -> Option<&End> {
        Some(self.stories.get(self.find(after.id)?)?.end())
    }

    /// When [`Joiner::tick`] has something to do next.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        let waiting = self.waiting.front().map(|&(at, _)| at);
        let settling = self.settling.peek().map(|&Reverse((at, _))| at);
        [waiting, settling].into_iter().flatten().min()
    }

    /// Tells what has waited long enough. `now_ns` must not be later than events still unread.
    pub fn tick(&mut self, now_ns: u64, out: &mut Vec<Record>) {
        while let Some(&Reverse((at, key))) = self.settling.peek()
            && at <= now_ns
        {
            self.settling.pop();
            self.complete(key, at, out);
        }
        while let Some(&(at, key)) = self.waiting.front()
            && at <= now_ns
        {
            self.waiting.pop_front();
            self.tell_untold(key, Told::Waited, out);
        }
    }

    /// Tells everything untold, as it stands.
    pub fn finish(&mut self, out: &mut Vec<Record>) {
        while let Some((_, key)) = self.waiting.pop_front() {
            self.tell_untold(key, Told::Waited, out);
        }
        self.stories.clear();
        self.latest.clear();
        self.partners = Partners::default();
        self.settling.clear();
        self.remembered.clear();
    }

    /// The story of one life of a socket. A RST that follows the destruction comes without the birth time, which is
    /// gone: then the latest life is meant, if it is over.
    fn find(&self, id: SockId) -> Option<Key> {
        let key = *self.latest.get(&id.sk)?;
        let story = self.stories.get(key)?;
        (story.id() == id || id.born_ns == 0 && story.released()).then_some(key)
    }

    fn end(&mut self, end: Box<End>, out: &mut Vec<Record>) {
        let (sk, gone, ts_ns) = (end.id.sk, end.gone, end.ts_ns);
        if end.untracked {
            // Nothing that follows can be matched to it.
            let mut story = Story::new(end);
            out.push(Record::Teardown(self.spare_teardowns.fill(story.tell(Told::Untracked, None))));
            self.spare_ends.give(story.into_end());
            return;
        }
        // The address has a new life. What is untold and unreleased has lost its release.
        if let Some(&stale) = self.latest.get(&sk)
            && self.stories.get(stale).is_some_and(|story| !story.released())
        {
            self.tell_untold(stale, Told::Untracked, out);
            self.forget(stale);
        }
        if self.stories.len() >= self.capacity {
            self.evict(out);
        }
        if self.waiting.len() > 2 * self.stories.len() + 1024 {
            // A long timeout must not keep the entries of what is finished.
            let stories = &self.stories;
            self.waiting.retain(|(_, key)| stories.contains_key(*key));
        }
        let partner = self.partners.find(&end, |key| self.stories.get(key).map(Story::end));
        let key = self.stories.insert(Story::new(end));
        self.waiting.push_back((ts_ns.saturating_add(self.timeout_ns), key));
        self.latest.insert(sk, key);
        if let Some(partner) = partner
            && let Some(other) = self.stories.get_mut(partner)
        {
            other.partner = Some(key);
            self.partners.remove(other.end(), partner);
        }
        let Some(story) = self.stories.get_mut(key) else { return };
        story.partner = partner;
        if partner.is_none() {
            self.partners.add(story.end(), key);
        }
        if gone {
            // No release follows.
            story.release(ts_ns, None, None, false, false, None);
            self.complete(key, ts_ns, out);
        }
    }

    fn after(&mut self, after: After, out: &mut Vec<Record>) {
        let Some(key) = self.find(after.id) else { return };
        let Some(story) = self.stories.get_mut(key) else { return };
        match after.kind {
            AfterKind::Observed { errno } => {
                if let Some(late) = story.observed(after.ts_ns, after.task, errno) {
                    out.push(late);
                }
            }
            AfterKind::ResetSent { reason, answer, segment_bytes } => {
                story.reset_sent(after.ts_ns, after.task, reason, answer, segment_bytes);
                if story.released() {
                    self.complete(key, after.ts_ns, out);
                }
            }
            AfterKind::Closed { errno } => story.closed(errno),
            AfterKind::Released { untaken, observation_lost, reset_lost, reopened, unread } => {
                if reset_lost {
                    story.reset_sent(after.ts_ns, None, None, false, None);
                }
                story.release(after.ts_ns, after.task, untaken, observation_lost, reopened, unread);
                if story.reset_may_follow() {
                    self.settling.push(Reverse((after.ts_ns.saturating_add(RESET_FOLLOWS_NS), key)));
                } else {
                    self.complete(key, after.ts_ns, out);
                }
            }
        }
    }

    /// All is known of this end: it is told, unless its other end may still appear.
    fn complete(&mut self, key: Key, now_ns: u64, out: &mut Vec<Record>) {
        let Some(story) = self.stories.get(key) else { return };
        match story.partner_may_follow_until_ns(PARTNER_FOLLOWS_NS, self.timeout_ns) {
            Some(until) if until > now_ns => self.settling.push(Reverse((until, key))),
            _ => self.settled(key, out),
        }
    }

    /// Nothing more is waited for but the other end's release, where there is one.
    fn settled(&mut self, key: Key, out: &mut Vec<Record>) {
        let Some(story) = self.stories.get_mut(key) else { return };
        if story.told() {
            out.extend(story.concluded_late());
            self.retire(key);
            return;
        }
        let partner = story.partner;
        // The join timeout ends this wait too.
        let open = partner.and_then(|partner| self.stories.get(partner)).is_some_and(|other| !other.told() && !other.released());
        if !open {
            self.tell(key, Told::Complete, out);
        }
    }

    fn tell_untold(&mut self, key: Key, why: Told, out: &mut Vec<Record>) {
        if self.stories.get(key).is_some_and(|story| !story.told()) {
            self.tell(key, why, out);
        }
    }

    /// Tells a story, and its other half with it.
    fn tell(&mut self, key: Key, why: Told, out: &mut Vec<Record>) {
        let Some(partner) = self.stories.get(key).map(|story| story.partner) else { return };
        let untold = partner.filter(|&partner| self.stories.get(partner).is_some_and(|other| !other.told()));
        let first = self.tell_half(key, why);
        let second = untold.and_then(|partner| self.tell_half(partner, Told::Waited));
        out.extend(match (first, second) {
            (Some(first), Some(second)) => Some(Record::Pair(first, second)),
            (first, second) => first.or(second).map(Record::Teardown),
        });
        self.retire(key);
        if let Some(partner) = untold {
            self.retire(partner);
        }
    }

    fn tell_half(&mut self, key: Key, why: Told) -> Option<Box<Teardown>> {
        let story = self.stories.get(key)?;
        let other = story.partner.and_then(|partner| self.stories.get(partner));
        let peer = other.map(|other| other.as_peer(story.end()));
        let story = self.stories.get_mut(key)?;
        let why = if story.released() { Told::Complete } else { why };
        Some(self.spare_teardowns.fill(story.tell(why, peer)))
    }

    /// A story that is told is remembered until its socket is released, for who notices late, and
    /// until its other half is told.
    fn retire(&mut self, key: Key) {
        let Some(story) = self.stories.get(key) else { return };
        let (released, partner) = (story.released(), story.partner);
        if !released {
            self.remember(key);
        } else if partner.and_then(|partner| self.stories.get(partner)).is_none_or(Story::told) {
            self.forget(key);
        }
    }

    fn forget(&mut self, key: Key) {
        let Some(story) = self.stories.remove(key) else { return };
        self.partners.remove(story.end(), key);
        let sk = story.id().sk;
        if self.latest.get(&sk) == Some(&key) {
            self.latest.remove(&sk);
        }
        self.spare_ends.give(story.into_end());
    }

    fn remember(&mut self, key: Key) {
        self.remembered.push_back(key);
        // Entries of released sockets are dropped now and then, not searched for.
        if self.remembered.len() > 2 * self.stories.len() + 1024 {
            let stories = &self.stories;
            self.remembered.retain(|key| stories.contains_key(*key));
        }
    }

    /// Makes room: first what is told and only remembered, oldest first; then what still waits.
    fn evict(&mut self, out: &mut Vec<Record>) {
        while let Some(key) = self.remembered.pop_front() {
            if self.stories.contains_key(key) {
                self.forget(key);
                self.evicted += 1;
                return;
            }
        }
        while let Some((_, key)) = self.waiting.pop_front() {
            if self.stories.contains_key(key) {
                self.tell(key, Told::Untracked, out);
                self.forget(key);
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
