//! Any frame from either side: XDP's programs and the engine agree on what it is (root is needed).
#![no_main]

use spindle_verdicts::{Judge, LENGTHS, Side};
use std::cell::OnceCell;

thread_local! {
    static JUDGE: OnceCell<Judge> = const { OnceCell::new() };
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((side, frame)) = data.split_first() else { return };
    if !LENGTHS.contains(&frame.len()) {
        return;
    }
    let side = if side & 1 == 0 { Side::Inside } else { Side::Outside };
    JUDGE.with(|judge| {
        let judge = judge.get_or_init(|| Judge::new().expect("root is needed"));
        let said = judge.ask(side, frame).expect("the frame's length is right");
        assert!(said.agree(), "{said:?}");
    });
});
