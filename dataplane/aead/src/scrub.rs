//! A box whose memory is zeroised when its value is dropped, for key schedules of libraries that don't do so.

use std::mem::ManuallyDrop;
use std::ops::Deref;
use zeroize::Zeroize;

pub(crate) struct Scrubbed<T>(Box<ManuallyDrop<T>>);

impl<T> Scrubbed<T> {
    pub(crate) fn new(value: T) -> Scrubbed<T> {
        Scrubbed(Box::new(ManuallyDrop::new(value)))
    }
}

impl<T> Deref for Scrubbed<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> Drop for Scrubbed<T> {
    fn drop(&mut self) {
        let value: *mut T = &mut **self.0;
        // SAFETY: `value` is valid and dropped only here: `ManuallyDrop` drops nothing by itself, and `self.0`
        // is not used as a `T` again, for this is the end of its only owner.
        unsafe { std::ptr::drop_in_place(value) };
        // SAFETY: the box still owns size_of::<T>() octets at `value`, aligned for `u8`, and nobody else refers to
        // them. `MaybeUninit` because padding may be uninitialised; `zeroize` on it only writes.
        let octets = unsafe {
            std::slice::from_raw_parts_mut(value.cast::<std::mem::MaybeUninit<u8>>(), size_of::<T>())
        };
        octets.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn the_value_is_dropped_once() {
        struct Counts<'a>(&'a Cell<u32>);
        impl Drop for Counts<'_> {
            fn drop(&mut self) {
                self.0.set(self.0.get() + 1);
            }
        }
        let dropped = Cell::new(0);
        drop(Scrubbed::new(Counts(&dropped)));
        assert_eq!(dropped.get(), 1);
    }
}
