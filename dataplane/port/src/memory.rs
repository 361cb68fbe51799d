//! A port in ordinary memory, for tests and benches.

use crate::{BURST, Pool, Port};
use arrayvec::ArrayVec;
use spindle_engine::MemoryFrame;
use std::collections::VecDeque;

/// What is put into `incoming` is received; what is transmitted is found in `outgoing` after the flush.
#[derive(Debug, Default)]
pub struct MemoryPort {
    /// To be received.
    pub incoming: VecDeque<MemoryFrame>,
    /// Sent.
    pub outgoing: Vec<MemoryFrame>,
    staged: Vec<MemoryFrame>,
    /// Frames that it stages at most; 0 is without limit.
    pub limit: usize,
}

impl Port for MemoryPort {
    type Frame = MemoryFrame;

    fn receive(&mut self, burst: &mut ArrayVec<MemoryFrame, BURST>) {
        while !burst.is_full() {
            let Some(frame) = self.incoming.pop_front() else { break };
            burst.push(frame);
        }
    }

    fn transmit(&mut self, frame: MemoryFrame) -> Result<(), MemoryFrame> {
        if self.limit > 0 && self.staged.len() == self.limit {
            return Err(frame);
        }
        self.staged.push(frame);
        Ok(())
    }

    fn flush(&mut self) {
        self.outgoing.append(&mut self.staged);
    }

    fn replenish(&mut self, _pool: &mut Pool<MemoryFrame>) {}

    fn fresh(_pool: &mut Pool<MemoryFrame>, length: usize) -> Option<MemoryFrame> {
        Some(MemoryFrame::new(&vec![0; length]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spindle_engine::Frame;

    #[test]
    fn frames_pass_in_order_and_a_full_port_gives_them_back() {
        let mut port = MemoryPort { limit: 1, ..MemoryPort::default() };
        port.incoming.extend([MemoryFrame::new(&[1]), MemoryFrame::new(&[2])]);
        let mut burst = ArrayVec::new();
        port.receive(&mut burst);
        let [one, two] = burst.into_iter().collect::<Vec<_>>().try_into().unwrap();
        assert!(port.transmit(one).is_ok());
        assert_eq!(port.transmit(two).unwrap_err().data(), [2]);
        assert!(port.outgoing.is_empty());
        port.flush();
        assert_eq!(port.outgoing[0].data(), [1]);
    }
}
