//! Safe IKE Recovery, SIR (draft-detienne-ikev2-recovery-03), both roles: an experiment, off by default.
//!
//! X lost an IKE SA, Y still has it. Y hears of it by a hint in clear, which anybody could have sent, and asks X at the
//! address where the IKE SA has it:
//!
//! ```text
//!   X                                          Y
//!   INVALID_SPI, INVALID_IKE_SPI  ---------->  a hint
//!      <-----  CHECK_SPI(QUERY, cookie)        nothing but a cookie shows that Y asked
//!   CHECK_SPI(NACK, cookie)  --------------->  waits for an ACK, then: a confirmation
//!      <-----  IKE_SA_INIT                     beside the old IKE SA, which IKE_AUTH ends
//! ```
//!
//! [`asked`] is X's side, a pure function of the query, budgets and what the endpoint says; [`asking`] is Y's, a small
//! record for each IKE SA that is asked about; [`cookie`] makes and checks Y's cookies; [`dampening`] says when a peer
//! is not asked. A NACK never deletes: whoever reads and injects packets can make one. It may start one IKE SA, not too
//! often, and the old one goes when that one is authenticated.
//!
//! The draft names no exchange type, no number of its notification that could be sent, and no times; what is used
//! here is private (RFC 7296 section 3.1 and 3.10.1) and announced by a Vendor ID that is not the draft's. Left out:
//! tickets (section 3.3), mandatory initiators (3.5) and the collapsed exchange (9).

pub(crate) mod asked;
pub(crate) mod asking;
pub(crate) mod cookie;
pub(crate) mod dampening;
pub(crate) mod message;
