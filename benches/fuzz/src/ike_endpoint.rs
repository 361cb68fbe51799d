//! Two endpoints with an IKE SA and a Child SA; then any datagrams to one of them, made from what was sent: nothing
//! that is not authentic ends or changes an SA.

use crate::endpoints::{Endpoints, laid_over};

/// Each step is a datagram's number, a place in it, a length and so many octets that are laid over it there.
pub fn run(data: &[u8]) {
    let mut endpoints = Endpoints::established();
    let session = endpoints.session.clone();
    let before = endpoints.sas();
    let mut rest = data;
    while let [which, place, length, tail @ ..] = rest {
        let (octets, tail) = tail.split_at(usize::from(*length).min(tail.len()));
        rest = tail;
        let (to, datagram) = &session[usize::from(*which) % session.len()];
        let datagram = laid_over(datagram, usize::from(*place), octets);
        endpoints.deliver(*to, datagram);
    }
    let after = endpoints.sas();
    for side in 0..2 {
        // Forged requests may leave half-open IKE SAs beside it.
        for sa in &before[side] {
            assert!(after[side].contains(sa), "{sa:#?} is gone or changed: {:#?}", after[side]);
        }
    }
}
