//! Any frame from either side: XDP's programs and the engine agree on what it is (root is needed).

use spindle_verdicts::{Judge, LENGTHS, Side};
use std::cell::OnceCell;

thread_local! {
    static JUDGES: OnceCell<[Judge; 2]> = const { OnceCell::new() };
}

/// The first octet says from which side the others come (bit 0: from outside), and whether both sides are VLANs (bit 1).
pub fn run(data: &[u8]) {
    let Some((how, frame)) = data.split_first() else { return };
    if !LENGTHS.contains(&frame.len()) {
        return;
    }
    let side = if how & 1 == 0 { Side::Inside } else { Side::Outside };
    JUDGES.with(|judges| {
        let made = || [Judge::new, Judge::of_vlans].map(|judge| judge().expect("root is needed"));
        let judge = &judges.get_or_init(made)[usize::from(how >> 1 & 1)];
        let said = judge.ask(side, frame).expect("the frame's length is right");
        assert!(said.agree(), "{said:?}");
    });
}
