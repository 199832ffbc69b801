//! Events of one socket to one record. Pure: time comes with the events and with [`Joiner::tick`].
//!
//! A story begins with the first sign of the end and is complete when the socket is released. It is
//! told then, or when it has waited for the join timeout; a story told early is remembered until
//! the release, for the sake of who notices late.

mod story;

use std::collections::{HashMap, VecDeque};

use self::story::{Story, Told};
use crate::model::{After, AfterKind, End, EndKind, Event, Record, Seen, SockId, Stray, Teardown};

/// After an orphan's release, how long its RST may take to follow: it is sent by the same
/// function, before the segment that provoked it is freed.
const RESET_FOLLOWS_NS: u64 = 1_000_000;

/// Stories by socket, bounded.
#[derive(Debug)]
pub struct Joiner {
    timeout_ns: u64,
    capacity: usize,
    stories: HashMap<u64, Story>,
    /// Untold stories in the order of their beginning; entries of finished ones are skipped.
    waiting: VecDeque<(u64, SockId)>,
    /// Released orphans whose RST may still follow.
    lingering: VecDeque<(u64, SockId)>,
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
            waiting: VecDeque::new(),
            lingering: VecDeque::new(),
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
            Event::Stray(stray) => out.push(Record::Teardown(Box::new(stray_record(stray)))),
        }
    }

    /// When [`Joiner::tick`] has something to do next.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        let first = |queue: &VecDeque<(u64, SockId)>| queue.front().map(|&(at, _)| at);
        [first(&self.waiting), first(&self.lingering)].into_iter().flatten().min()
    }

    /// Tells what has waited long enough. `now_ns` must not be later than events still unread.
    pub fn tick(&mut self, now_ns: u64, out: &mut Vec<Record>) {
        while let Some(&(at, id)) = self.lingering.front()
            && at <= now_ns
        {
            self.lingering.pop_front();
            self.complete(id, out);
        }
        while let Some(&(at, id)) = self.waiting.front()
            && at <= now_ns
        {
            self.waiting.pop_front();
            if let Some(story) = self.story(id)
                && !story.told()
            {
                out.push(story.tell(Told::Waited));
                self.remember(id);
            }
        }
    }

    /// Tells everything untold, as it stands.
    pub fn finish(&mut self, out: &mut Vec<Record>) {
        while let Some((_, id)) = self.waiting.pop_front() {
            let released = self.story(id).is_some_and(|story| story.released());
            if released {
                self.complete(id, out);
            } else if let Some(story) = self.story(id)
                && !story.told()
            {
                out.push(story.tell(Told::Waited));
            }
        }
        self.stories.clear();
        self.lingering.clear();
        self.remembered.clear();
    }

    fn story(&mut self, id: SockId) -> Option<&mut Story> {
        self.stories.get_mut(&id.sk).filter(|story| story.id() == id)
    }

    fn end(&mut self, end: Box<End>, out: &mut Vec<Record>) {
        let id = end.id;
        let (untracked, gone, ts_ns) = (end.untracked, end.gone, end.ts_ns);
        let mut story = Story::new(end);
        if untracked || gone {
            // Nothing that follows can be matched to it, or nothing follows.
            out.push(story.tell(if untracked { Told::Untracked } else { Told::Complete }));
            return;
        }
        if let Some(mut stale) = self.stories.remove(&id.sk)
            && !stale.told()
        {
            // Its release was lost: the address has a new life.
            out.push(stale.tell(if stale.released() { Told::Complete } else { Told::Untracked }));
        }
        if self.stories.len() >= self.capacity {
            self.evict(out);
        }
        if self.waiting.len() > 2 * self.stories.len() + 1024 {
            // A long timeout must not keep the entries of what is finished.
            let stories = &self.stories;
            self.waiting.retain(|(_, id)| stories.get(&id.sk).is_some_and(|story| story.id() == *id));
        }
        self.waiting.push_back((ts_ns.saturating_add(self.timeout_ns), id));
        self.stories.insert(id.sk, story);
    }

    fn after(&mut self, after: After, out: &mut Vec<Record>) {
        let Some(story) = self.stories.get_mut(&after.id.sk) else { return };
        // A RST that follows the destruction comes without the birth time, which is gone.
        let same = story.id() == after.id || after.id.born_ns == 0 && story.released();
        if !same {
            return;
        }
        let id = story.id();
        match after.kind {
            AfterKind::Observed { errno } => {
                if let Some(late) = story.observed(after.ts_ns, after.task, errno) {
                    out.push(late);
                }
            }
            AfterKind::ResetSent { reason, answer } => {
                story.reset_sent(after.ts_ns, after.task, reason, answer);
                if story.released() {
                    self.complete(id, out);
                }
            }
            AfterKind::Closed { errno } => story.closed(errno),
            AfterKind::Released { untaken, observation_lost, reset_lost, reopened } => {
                let task = after.task;
                if reset_lost {
                    story.reset_sent(after.ts_ns, None, None, false);
                }
                story.release(after.ts_ns, task, untaken, observation_lost, reopened);
                if story.reset_may_follow() {
                    self.lingering.push_back((after.ts_ns.saturating_add(RESET_FOLLOWS_NS), id));
                } else {
                    self.complete(id, out);
                }
            }
        }
    }

    fn complete(&mut self, id: SockId, out: &mut Vec<Record>) {
        if self.story(id).is_none() {
            return;
        }
        if let Some(mut story) = self.stories.remove(&id.sk) {
            if !story.told() {
                out.push(story.tell(Told::Complete));
            } else if let Some(late) = story.concluded_late() {
                out.push(late);
            }
        }
    }

    fn remember(&mut self, id: SockId) {
        self.remembered.push_back(id);
        // Entries of released sockets are dropped now and then, not searched for.
        if self.remembered.len() > 2 * self.stories.len() + 1024 {
            let stories = &self.stories;
            self.remembered.retain(|id| stories.get(&id.sk).is_some_and(|story| story.id() == *id));
        }
    }

    /// Makes room: first what is told and only remembered, oldest first; then what still waits.
    fn evict(&mut self, out: &mut Vec<Record>) {
        while let Some(id) = self.remembered.pop_front() {
            if self.story(id).is_some() {
                self.stories.remove(&id.sk);
                self.evicted += 1;
                return;
            }
        }
        while let Some((_, id)) = self.waiting.pop_front() {
            if self.story(id).is_some()
                && let Some(mut story) = self.stories.remove(&id.sk)
            {
                out.push(story.tell(Told::Untracked));
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
        fin: crate::model::Fin::default(),
    }
}

#[cfg(test)]
mod tests;
