//! Histories whose verdict is known, written by hand.

use super::*;

fn judged(text: &str) -> (Report, History) {
    let history: History = text.parse().unwrap();
    (check(&history, STEPS), history)
}

#[track_caller]
fn good(text: &str) {
    let (report, history) = judged(text);
    assert_eq!(
        report.verdict(),
        Verdict::Linearizable,
        "{}",
        report.explain(&history)
    );
}

/// Refused, with exactly these operations as the proof.
#[track_caller]
fn bad(text: &str, window: &[usize]) {
    let (report, history) = judged(text);
    assert_eq!(report.verdict(), Verdict::Violated, "{text}");
    assert_eq!(report.violations.len(), 1);
    assert_eq!(
        report.violations[0].window,
        window,
        "{}",
        report.explain(&history)
    );
}

#[test]
fn nothing_is_linearizable() {
    good("");
    good("1 k 0..1 read -> absent");
    good("1 k 0..1 write 1 -> unknown");
}

#[test]
fn a_stale_read_is_refused() {
    bad(
        "1 k 0..1 write 1 -> ok\n1 k 2..3 write 2 -> ok\n2 k 4..5 read -> 1\n2 k 6..7 read -> 2",
        &[0, 1, 2],
    );
    bad("1 k 0..1 write 1 -> ok\n2 k 2..3 read -> absent", &[0, 1]);
    // Under way at the same time, each may come first.
    good("1 k 0..1 write 1 -> ok\n1 k 2..5 write 2 -> ok\n2 k 4..6 read -> 1");
    good("1 k 0..2 write 1 -> ok\n2 k 2..3 read -> absent");
}

#[test]
fn two_readers_agree_on_what_was_first() {
    bad(
        "1 k 0..9 write 1 -> ok\n2 k 0..9 write 2 -> ok\n\
         3 k 10..11 read -> 1\n4 k 12..13 read -> 2",
        &[0, 1, 2, 3],
    );
    // A new value that one has seen is not unseen by the next.
    bad(
        "1 k 0..1 write 1 -> ok\n1 k 2..20 write 2 -> ok\n2 k 3..4 read -> 2\n3 k 5..6 read -> 1",
        &[0, 1, 2, 3],
    );
}

#[test]
fn a_lost_update_is_refused() {
    // Both saw 1 and wrote without comparing; nobody sees the first again: that is what a register does.
    good("1 k 0..1 write 1 -> ok\n2 k 2..3 write 2 -> ok\n3 k 2..3 write 3 -> ok\n2 k 4..5 read -> 3");
    // An acknowledged write that left no trace.
    bad(
        "1 k 0..1 write 1 -> ok\n2 k 2..3 write 2 -> ok\n2 k 4..5 read -> 1\n2 k 6..7 read -> 1",
        &[0, 1, 2],
    );
}

#[test]
fn two_compare_and_sets_do_not_both_find_the_same() {
    bad(
        "1 k 0..1 write 1 -> ok\n2 k 2..9 cas 1 2 -> ok\n3 k 2..9 cas 1 3 -> ok",
        &[0, 1, 2],
    );
    good("1 k 0..1 write 1 -> ok\n2 k 2..9 cas 1 2 -> ok\n3 k 2..9 cas 1 3 -> failed");
    // Unless it was written once more.
    good("1 k 0..1 write 1 -> ok\n2 k 2..9 cas 1 2 -> ok\n3 k 2..9 cas 1 3 -> ok\n1 k 2..9 write 1 -> ok");
    // The key is created once.
    bad(
        "2 k 2..9 cas absent 2 -> ok\n3 k 2..9 cas absent 3 -> ok",
        &[0, 1],
    );
    // One of them may have failed without its client learning of it.
    good("1 k 0..1 write 1 -> ok\n2 k 2..9 cas 1 2 -> ok\n3 k 2..9 cas 1 3 -> unknown");
}

#[test]
fn a_compare_and_set_does_not_fail_on_what_it_expects() {
    bad("1 k 0..1 write 1 -> ok\n2 k 2..9 cas 1 2 -> failed", &[0, 1]);
    good("1 k 0..1 write 1 -> ok\n1 k 2..3 write 2 -> unknown\n2 k 4..9 cas 1 2 -> failed");
    bad("2 k 2..9 cas absent 2 -> failed", &[0]);
}

#[test]
fn what_never_began_is_not_seen() {
    bad("2 k 0..1 read -> 7", &[0]);
    bad("2 k 0..1 read -> 7\n1 k 2..3 write 7 -> ok", &[0, 1]);
    bad("2 k 0..1 read -> 7\n1 k 2..3 write 7 -> unknown", &[0, 1]);
}

#[test]
fn what_was_not_executed_is_not_seen_either() {
    good("1 k 0..1 write 1 -> not-executed\n2 k 2..3 read -> absent\n1 k 4..5 write 2 -> refused");
    // The picture shows the write, though it has no part in the proof.
    bad("1 k 0..1 write 1 -> not-executed\n2 k 2..3 read -> 1", &[0, 1]);
    bad("1 k 0..1 write 1 -> refused\n2 k 2..3 read -> 1", &[0, 1]);
}

#[test]
fn an_unknown_write_takes_effect_late_or_never() {
    for word in ["unknown", "executed-by-stale-leader", "executed-unreplicated"] {
        let write = format!("1 k 0..1 write 1 -> {word}\n2 k 2..3 write 2 -> ok\n");
        good(&format!("{write}2 k 4..5 read -> 2\n2 k 6..7 read -> 1"));
        good(&format!("{write}2 k 4..5 read -> 2\n2 k 6..7 read -> 2"));
        good(&format!("{write}2 k 4..5 read -> 1\n2 k 6..7 read -> 1"));
        // Once at most.
        bad(
            &format!("{write}2 k 4..5 read -> 1\n2 k 6..7 read -> 2"),
            &[0, 1, 2, 3],
        );
    }
    // One that is still under way is no different.
    good("1 k 0.. write 1 -> unknown\n2 k 2..3 read -> absent\n2 k 4..5 read -> 1");
}

#[test]
fn unknown_compare_and_sets_may_follow_each_other() {
    let chain = "1 k 0..1 write 1 -> unknown\n2 k 2..3 cas 1 2 -> unknown\n3 k 4..5 cas 2 3 -> unknown\n";
    good(&format!("{chain}4 k 6..7 read -> 3"));
    good(&format!("{chain}4 k 6..7 read -> 2\n4 k 8..9 read -> 3"));
    bad(
        &format!("{chain}4 k 6..7 read -> 2\n4 k 8..9 read -> 1"),
        &[0, 1, 3, 4],
    );
}

#[test]
fn keys_are_judged_one_by_one() {
    // Nobody promised that what was written later is not seen earlier, as long as each write is still open.
    good(
        "1 x 0..1 write 1 -> unknown\n1 y 2..3 write 2 -> unknown\n\
         2 y 4..5 read -> 2\n2 x 6..7 read -> absent\n2 x 8..9 read -> 1",
    );
    let (report, history) =
        judged("1 a 0..1 write 1 -> ok\n1 b 0..1 write 1 -> ok\n1 b 2..3 read -> absent\n1 c 0..1 read -> 5");
    let keys: Vec<&str> = report.violations.iter().map(|v| v.key.as_str()).collect();
    assert_eq!(keys, ["b", "c"], "{}", report.explain(&history));
    assert_eq!((report.keys, report.operations), (3, 4));
}

#[test]
fn values_may_come_again() {
    // Clients that do not number their writes.
    good(
        "1 k 0..1 write 1 -> ok\n1 k 2..3 write 2 -> ok\n1 k 4..9 write 1 -> ok\n2 k 5..6 read -> 1\n2 k 7..8 read -> 1",
    );
    good("1 k 0..1 write 1 -> ok\n1 k 2..3 write 1 -> ok\n2 k 4..5 read -> 1");
    good("1 k 0..1 write 1 -> ok\n2 k 2..3 cas 1 1 -> ok\n2 k 4..5 read -> 1");
    bad(
        "1 k 0..1 write 1 -> ok\n1 k 2..3 write 2 -> ok\n2 k 4..5 read -> 1\n1 k 6..7 write 1 -> ok",
        &[0, 1, 2],
    );
}

#[test]
fn the_proof_is_small_in_a_long_history() {
    let mut text = String::new();
    for turn in 0..500 {
        let at = turn * 10;
        text.push_str(&format!("1 k {at}..{} write {turn} -> ok\n", at + 4));
        let saw = if turn == 300 { 250 } else { turn };
        text.push_str(&format!("2 k {}..{} read -> {saw}\n", at + 5, at + 6));
    }
    let (report, history) = judged(&text);
    let violation = &report.violations[0];
    assert_eq!(violation.stuck, 601);
    assert_eq!(violation.window, [500, 502, 601], "{}", report.explain(&history));
    let before: Vec<usize> = (0..601).collect();
    assert_eq!(violation.placed, before);
    assert!(
        report
            .explain(&history)
            .contains("#601 2 k 3005..3006 read -> 250")
    );
}

#[test]
fn a_budget_that_is_spent_is_no_verdict() {
    // Many writes at once, of few values: what to try first is anybody's guess.
    let mut text = String::new();
    for client in 0..30 {
        text.push_str(&format!("{client} k 0..100 write {} -> ok\n", client % 5));
        text.push_str(&format!(
            "{client} k 0..100 cas {} {} -> ok\n",
            client % 5,
            client % 3
        ));
    }
    text.push_str("1 k 101..102 read -> 9\n");
    let history: History = text.parse().unwrap();
    let report = check(&history, 2_000);
    assert_eq!(report.verdict(), Verdict::Unknown);
    assert_eq!(report.undecided, ["k"]);
    assert!(report.steps <= 2_000, "{}", report.steps);
    assert!(report.explain(&history).contains("key k: the budget was spent"));
}

#[test]
fn equal_histories_take_equally_many_steps() {
    let text = "1 k 0..9 write 1 -> ok\n2 k 0..9 write 2 -> ok\n3 k 5..11 read -> 1\n4 k 12..13 read -> 2";
    assert_eq!(judged(text).0, judged(text).0);
}
