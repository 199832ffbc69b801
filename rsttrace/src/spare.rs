//! Memory that is used again: what is made for every event, and is of one size, is not given back in between.

/// More are not kept: a burst should not be remembered by its memory for ever.
const MAX: usize = 1_024;

/// Boxes whose content is no longer needed.
#[derive(Debug)]
pub struct Spare<T>(Vec<Box<T>>);

impl<T> Default for Spare<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Spare<T> {
    /// Puts a value into a spare box, or into a new one.
    pub fn fill(&mut self, value: T) -> Box<T> {
        match self.0.pop() {
            Some(mut spare) => {
                *spare = value;
                spare
            }
            None => Box::new(value),
        }
    }

    /// Takes a box back.
    pub fn give(&mut self, spare: Box<T>) {
        if self.0.len() < MAX {
            self.0.push(spare);
        }
    }
}
