//! Shelf: keeps what was learned while settings that it depends on change.
//!
//! A window of ten seconds cannot become one of thirty, so a changed length means a new object that takes over what it
//! can. The old one is still in the hands of requests that began before the change, and a change may be refused after
//! all. So the shelf keeps every object that somebody holds, and the last one when nobody holds any.

use std::sync::Arc;

use crate::sync::Mutex;

/// The objects of one name: usually one.
#[derive(Debug)]
pub struct Shelf<T>(Mutex<Vec<Arc<T>>>);

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self(Mutex::new(Vec::new()))
    }
}

impl<T> Shelf<T> {
    /// The object that fits, or a new one made after the last.
    pub fn take(&self, fits: impl Fn(&T) -> bool, make: impl FnOnce(Option<&Arc<T>>) -> T) -> Arc<T> {
        // A panic while it was held left a list of whole objects behind.
        let mut kept = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if kept.iter().any(|object| Arc::strong_count(object) > 1) {
            kept.retain(|object| Arc::strong_count(object) > 1);
        } else if let Some(last) = kept.pop() {
            *kept = vec![last];
        }
        if let Some(object) = kept.iter().find(|object| fits(object)) {
            return Arc::clone(object);
        }
        let new = Arc::new(make(kept.last()));
        kept.push(Arc::clone(&new));
        new
    }

    /// The newest object that somebody holds, else the newest.
    pub fn last(&self) -> Option<Arc<T>> {
        let kept = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let held = kept.iter().rfind(|object| Arc::strong_count(object) > 1);
        held.or(kept.last()).map(Arc::clone)
    }

    /// Puts an object there that came from elsewhere.
    pub fn put(&self, object: T) {
        let mut kept = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        kept.push(Arc::new(object));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn of(shelf: &Shelf<(u32, u32)>, size: u32) -> Arc<(u32, u32)> {
        shelf.take(
            |known| known.0 == size,
            |last| (size, last.map_or(0, |last| last.1 + 1)),
        )
    }

    #[test]
    fn the_one_in_use_is_found_again_after_a_change_that_was_refused() {
        let shelf = Shelf::default();
        let used = of(&shelf, 10);
        drop(of(&shelf, 30));
        assert!(Arc::ptr_eq(&of(&shelf, 10), &used));
        assert_eq!(
            of(&shelf, 30).1,
            1,
            "made after the one in use, not found from the refused change"
        );
    }

    #[test]
    fn the_last_one_stays_when_nobody_holds_any() {
        let shelf = Shelf::default();
        drop(of(&shelf, 10));
        assert_eq!(of(&shelf, 10).1, 0);
        assert_eq!(of(&shelf, 20).1, 1);
        assert_eq!(shelf.last().map(|last| last.0), Some(20));
        let held = of(&shelf, 10);
        drop(of(&shelf, 30));
        assert_eq!(
            shelf.last().map(|last| last.0),
            Some(held.0),
            "not of a change that was refused"
        );
    }

    #[test]
    fn one_from_elsewhere_is_found_or_followed() {
        let shelf = Shelf::default();
        shelf.put((10, 7));
        assert_eq!(of(&shelf, 10).1, 7);
        assert_eq!(of(&shelf, 20).1, 8);
    }
}
