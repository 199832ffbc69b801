//! What a record means: phase, cause, initiator, harm, and one sentence. Pure rules over one
//! record; docs/verdicts.md is the table that they implement. Where evidence is missing, the
//! verdict is the weaker one.

mod cause;
mod facts;
mod harm;
mod initiator;
mod phase;
mod reason;
pub mod timers;
mod words;

use self::{facts::Facts, timers::Timers};
use crate::model::{Teardown, Verdict};

/// Judges one record. `words` lends its memory to the verdict's.
pub fn judge(teardown: &Teardown, timers: &Timers, mut words: String) -> Verdict {
    let facts = Facts::new(teardown);
    let cause = cause::of(&facts);
    let phase = phase::of(&facts, cause);
    let initiator = initiator::of(&facts, cause);
    let (harm, damage) = harm::of(&facts, cause);
    let timer = timers.matching(facts.idle_before(cause));
    words.clear();
    words::write(&mut words, &facts, cause, initiator, &damage);
    let inferred_reason = reason::inferred(&facts, cause);
    Verdict { phase, cause, initiator, harm, damage, reused: facts.reused(), inferred_reason, timer, words }
}

#[cfg(test)]
mod tests;
