//! Hedging: another endpoint is asked although the first has not failed yet, and the first good answer is kept.
//!
//! When to ask, and whether the budget allows it, is [`bellwether_core::hedge`]'s; here the copies run. A failure that
//! could be tried again does not win while another try is under way. Who loses is dropped, which ends its exchange at
//! the endpoint, and says nothing about the endpoint but that it takes at least so long.
//!
//! What must stay true: each copy goes to an endpoint of its own and was paid for.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use smallvec::SmallVec;

use super::attempt::{self, Aim, Answered, Call, Failed};
use super::cx::RequestCx;
use crate::snapshot::{HedgePlan, Route};
use crate::telemetry::HedgeResult;
use crate::wire::Early;

/// What came of a try and its copies.
pub(super) struct Hedged {
    /// The endpoint whose answer, or failure, this is.
    pub(super) index: usize,
    pub(super) result: Result<Answered, Failed>,
    /// The other endpoints that were asked.
    pub(super) others: SmallVec<[usize; 2]>,
}

type Running<'a> = Pin<Box<dyn Future<Output = Result<Answered, Failed>> + 'a>>;

/// Sends a request, and copies of it while no answer comes.
pub(super) async fn attempt(
    cx: &RequestCx,
    route: &Route,
    plan: &HedgePlan,
    call: &Call<'_>,
    first: Aim,
    mut another: impl FnMut(&[usize]) -> Option<Aim>,
    is_final: impl Fn(&Answered) -> bool,
) -> Hedged {
    let wheel = &cx.worker.tools.wheel;
    let started = wheel.now();
    let hedge = route.state.hedge();
    hedge.begin(plan.share);
    let delay = hedge.delay(plan.delay, started);
    let timer = wheel.timer();
    if let Some(delay) = delay {
        timer.set(started.plus(delay));
    }
    let none = Early::None;
    let copies = Call {
        early: &none,
        ..*call
    };
    let mut asked: SmallVec<[usize; 2]> = SmallVec::new();
    asked.push(first.picked.index);
    let mut running: SmallVec<[(usize, Running<'_>); 2]> = SmallVec::new();
    running.push((first.picked.index, Box::pin(attempt::attempt(cx, call, first))));
    let mut held: Option<(usize, Result<Answered, Failed>)> = None;
    let (index, result) = poll_fn(|task| {
        loop {
            let mut at = 0;
            while at < running.len() {
                let Poll::Ready(result) = running[at].1.as_mut().poll(task) else {
                    at += 1;
                    continue;
                };
                let (index, _) = running.remove(at);
                let good = result.as_ref().is_ok_and(&is_final);
                // An answer that would be tried again is still better than none.
                if good || held.as_ref().is_none_or(|(_, held)| held.is_err()) {
                    held = Some((index, result));
                }
                if good {
                    running.clear();
                }
            }
            if running.is_empty()
                && let Some(held) = held.take()
            {
                return Poll::Ready(held);
            }
            if asked.len() > plan.max_extra as usize || timer.poll_expired(task).is_pending() {
                return Poll::Pending;
            }
            timer.clear();
            let copy = if hedge.pay() { another(&asked) } else { None };
            let Some(aim) = copy else {
                route.metrics.hedged(cx.worker.id, HedgeResult::Vetoed);
                return Poll::Pending;
            };
            if let Some(delay) = delay {
                timer.set(wheel.now().plus(delay));
            }
            let index = aim.picked.index;
            asked.push(index);
            running.push((index, Box::pin(attempt::attempt(cx, &copies, aim))));
        }
    })
    .await;
    // The copies are dropped by now. A first try that was given up has taken at least so long.
    drop(running);
    let first = asked[0];
    let is_answer = result
        .as_ref()
        .is_ok_and(|answered| !answered.head.status.is_server_error());
    if is_answer {
        let now = wheel.now();
        hedge.answered(now.since(started), now);
    }
    for _ in 1..asked.len() {
        let won = is_answer && index != first;
        let how = if won { HedgeResult::Won } else { HedgeResult::Lost };
        route.metrics.hedged(cx.worker.id, how);
    }
    asked.retain(|asked| *asked != index);
    Hedged {
        index,
        result,
        others: asked,
    }
}
