//! HTTP/1.1 connections, from outside: bytes in, bytes out, and what the service and the caller see.

use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bellwether_core::Dice;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::client::{Answer, Connection, Exchange, ExchangeError, Outgoing};
use super::head::{HeadError, Limits};
use super::server::{self, Ended, Settings};
use crate::net::{Io, memory};
use crate::wire::testing::{Raw, Script, Step, collect, reply, run, secs, service, sleep, text};
use crate::wire::{BodyError, Drain, Inbound, Refusal, RequestBody, Service, Toolbox};

fn settings() -> Settings {
    Settings {
        limits: Limits::default(),
        headers: secs(5),
        body_idle: Some(secs(30)),
        keep_alive: secs(60),
        max_age: None,
        max_requests: None,
    }
}

struct Served {
    raw: Raw,
    drain: Rc<Drain>,
    ended: JoinHandle<Ended>,
}

fn serve_with<S: Service>(tools: &Toolbox, service: &Rc<S>, settings: Settings, capacity: usize) -> Served {
    let (near, far) = memory::pair(capacity);
    let drain = Rc::<Drain>::default();
    let (tools, service, joined) = (tools.clone(), Rc::clone(service), Rc::clone(&drain));
    let ended = tokio::task::spawn_local(async move {
        let mut dice = Dice::new(1);
        server::serve(far, service, Arc::new(settings), tools, &joined, &mut dice).await
    });
    Served {
        raw: Raw { io: near },
        drain,
        ended,
    }
}

fn serve<S: Service>(tools: &Toolbox, service: &Rc<S>) -> Served {
    serve_with(tools, service, settings(), 64 * 1024)
}

/// Answers with the path and the content of the request.
fn echo() -> Rc<impl Service> {
    service(|inbound: Inbound| async move {
        let (parts, mut body) = inbound.request.into_parts();
        match collect(&mut body).await {
            Ok(content) => text(200, [parts.uri.path().as_bytes(), b":", &content].concat()),
            Err(error) => text(
                match error {
                    BodyError::Stalled => 408,
                    _ => 400,
                },
                error.to_string(),
            ),
        }
    })
}

/// Answers 404 without a look at the content.
fn refusing() -> Rc<impl Service> {
    service(|_: Inbound| async { text(404, "no") })
}

fn statuses(answer: &str) -> Vec<&str> {
    answer.split("HTTP/1.").skip(1).map(|head| &head[2..5]).collect()
}

const GET: &str = "GET /a HTTP/1.1\r\nhost: x\r\n\r\n";

#[test]
fn pipelined_requests_are_answered_in_order_whatever_follows_them() {
    run(|tools| async move {
        let mut served = serve(&tools, &echo());
        let answer = served
            .raw
            .ask("POST /1 HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhiGET /2 HTTP/1.1\r\nhost: x\r\n\r\n\r\nGET /3 HTTP/1.1\r\nhost: x\r\n\r\nGET")
            .await;
        assert_eq!(statuses(&answer), ["200", "200", "200"]);
        let order: Vec<_> = ["/1:hi", "/2:", "/3:"]
            .map(|text| answer.find(text).unwrap())
            .into();
        assert!(order.is_sorted());
        let rest = served.raw.ask(" /4 HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(rest.ends_with("/4:"));
    });
}

#[test]
fn a_head_that_began_behind_a_long_answer_has_its_full_time() {
    run(|tools| async move {
        let script = tools.clone();
        let slow = service(move |_: Inbound| {
            let script = script.clone();
            async move {
                reply(
                    200,
                    Script::new(&script, [Step::Wait(secs(600)), Step::Data("x".into())]).boxed(),
                )
            }
        });
        let mut served = serve(&tools, &slow);
        served.raw.send(format!("{GET}GET /b HT")).await;
        sleep(secs(601)).await;
        assert_eq!(statuses(&served.raw.receive().await.0), ["200"]);
        served.raw.send("TP/1.1\r\nhost: x\r\n\r\n").await;
        sleep(secs(601)).await;
        assert_eq!(statuses(&served.raw.receive().await.0), ["200"]);
    });
}

#[test]
fn a_slow_head_is_refused_and_an_idle_connection_closed_silently() {
    run(|tools| async move {
        let mut served = serve(&tools, &echo());
        for byte in GET.bytes().take(6) {
            served.raw.send([byte]).await;
            sleep(secs(1)).await;
        }
        let (answer, closed) = served.raw.receive_for(secs(3)).await;
        assert_eq!(statuses(&answer), ["408"]);
        assert!(closed && answer.contains("connection: close"));
        assert!(matches!(
            served.ended.await.unwrap(),
            Ended::Refused(Refusal::HeadTimeout)
        ));

        // Neither one that never spoke, nor one that sent an empty line, is told anything.
        for first in ["", "\r\n", GET] {
            let mut served = serve(&tools, &echo());
            served.raw.send(first).await;
            let (answer, closed) = served.raw.receive_for(secs(59)).await;
            assert!(!closed, "{first:?}");
            assert_eq!(answer.is_empty(), first != GET);
            assert_eq!(served.raw.receive_for(secs(3)).await, (String::new(), true));
            assert!(matches!(served.ended.await.unwrap(), Ended::Cleanly));
        }
    });
}

#[test]
fn a_malformed_head_is_answered_and_what_follows_is_swallowed() {
    run(|tools| async move {
        let mut served = serve(&tools, &echo());
        served.raw.send("GET / HTTP/1.1\r\nhost : x\r\n\r\n").await;
        served.raw.send(vec![b'x'; 100_000]).await;
        let (answer, _) = served.raw.receive().await;
        assert_eq!(statuses(&answer), ["400"]);
        drop(served.raw);
        assert!(matches!(
            served.ended.await.unwrap(),
            Ended::Refused(Refusal::Head(HeadError::SpaceBeforeColon))
        ));
    });
}

#[test]
fn a_refused_answer_to_head_has_no_content() {
    run(|tools| async move {
        // RFC 9110 §9.3.2, as far as the method is known: whatever is wrong behind it.
        for (request, status, content) in [
            ("HEAD / HTTP/1.1\r\nhost : x\r\n\r\n", "400", false),
            ("HEAD / HTTP/1.1\r\n\r\n", "400", false),
            ("\r\nHEAD / HTTP/1.1\r\n\r\n", "400", false),
            ("HEAD  / HTTP/1.1\r\nhost: x\r\n\r\n", "400", false),
            (
                "HEAD / HTTP/1.1\r\nhost: x\r\ncontent-length: a\r\n\r\n",
                "400",
                false,
            ),
            ("HEAD / HT", "408", false),
            ("GET / HTTP/1.1\r\n\r\n", "400", true),
            ("HEADER / HTTP/1.1\r\n\r\n", "400", true),
            ("HEAD", "408", true),
        ] {
            let mut served = serve(&tools, &echo());
            served.raw.send(request).await;
            let (answer, _) = served.raw.receive_for(secs(6)).await;
            assert_eq!(statuses(&answer), [status], "{request:?}");
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert_eq!(!body.is_empty(), content, "{request:?}: {answer}");
            assert!(head.contains("connection: close"));
            assert!(!head.contains("content-length: 0"), "{head}");
        }
        // One that is sound does not speak for the next one.
        let mut served = serve(&tools, &echo());
        let head = "HEAD / HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP/1.1\r\n\r\n";
        assert!(served.raw.ask(head).await.ends_with("missing_host"));
    });
}

#[test]
fn unread_content_is_swallowed_if_it_is_little_also_when_it_comes_later() {
    run(|tools| async move {
        let mut served = serve(&tools, &refusing());
        let answer = served
            .raw
            .ask("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 6\r\n\r\nabc")
            .await;
        assert_eq!(statuses(&answer), ["404"]);
        assert!(!answer.contains("close"));
        let answer = served.raw.ask(format!("def{GET}")).await;
        assert_eq!(statuses(&answer), ["404"]);

        // Chunks that are never finished end the connection, but not the answer.
        let answer = served
            .raw
            .ask("POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
            .await;
        assert_eq!(statuses(&answer), ["404"]);
        assert!(answer.contains("connection: close"));
        assert!(served.raw.receive_for(secs(3)).await.1);
    });
}

#[test]
fn much_unread_content_ends_the_connection_and_the_client_is_told() {
    run(|tools| async move {
        let mut served = serve(&tools, &refusing());
        let answer = served
            .raw
            .ask("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\nabc")
            .await;
        assert_eq!(statuses(&answer), ["404"]);
        assert!(answer.contains("connection: close"));
        assert!(served.raw.receive_for(secs(3)).await.1);
    });
}

#[test]
fn a_client_that_waits_for_100_gets_it_when_its_content_is_wanted() {
    run(|tools| async move {
        let head = "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\n";
        let mut served = serve(&tools, &echo());
        assert_eq!(served.raw.ask(head).await, "HTTP/1.1 100 Continue\r\n\r\n");
        assert!(served.raw.ask("abc").await.ends_with("/:abc"));

        let mut served = serve(&tools, &refusing());
        let answer = served.raw.ask(head).await;
        assert_eq!(statuses(&answer), ["404"]);
        assert!(answer.contains("connection: close"));
    });
}

#[test]
fn answers_without_content_have_none_and_say_what_get_would_have_said() {
    run(|tools| async move {
        let answers = service(|inbound: Inbound| async move {
            match inbound.request.uri().path() {
                "/204" => text(204, "x"),
                "/304" => {
                    let mut reply = text(304, "");
                    reply
                        .head
                        .headers
                        .insert(header::CONTENT_LENGTH, HeaderValue::from(5));
                    reply
                }
                "/unknown" => text(200, ""),
                _ => text(200, "hello"),
            }
        });
        let mut served = serve(&tools, &answers);
        let mut ask = async |method: &str, path: &str| {
            let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n");
            served.raw.ask(request).await
        };
        let answer = ask("GET", "/204").await;
        assert!(answer.starts_with("HTTP/1.1 204") && !answer.contains("content-length"));
        assert!(answer.ends_with("\r\n\r\n"));
        let answer = ask("GET", "/304").await;
        assert!(answer.contains("content-length: 5\r\n") && answer.ends_with("\r\n\r\n"));
        let answer = ask("HEAD", "/").await;
        assert!(answer.contains("content-length: 5\r\n") && answer.ends_with("\r\n\r\n"));
        // The body of an upstream's answer to HEAD is empty, which says nothing about GET.
        let answer = ask("HEAD", "/unknown").await;
        assert!(!answer.contains("content-length"));
        assert!(ask("GET", "/").await.ends_with("hello"));
    });
}

#[test]
fn http_1_0_is_answered_in_its_own_way() {
    run(|tools| async move {
        let script = tools.clone();
        let answers = service(move |inbound: Inbound| {
            let script = script.clone();
            async move {
                if inbound.request.uri().path() == "/stream" {
                    return reply(200, Script::new(&script, [Step::Data("abc".into())]).boxed());
                }
                text(200, "hello")
            }
        });
        let mut served = serve(&tools, &answers);
        let answer = served
            .raw
            .ask("GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
            .await;
        assert!(answer.starts_with("HTTP/1.0 200") && answer.contains("connection: keep-alive"));
        served
            .raw
            .send("GET /stream HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
            .await;
        let (answer, closed) = served.raw.receive().await;
        assert!(closed && answer.ends_with("\r\n\r\nabc") && answer.contains("connection: close"));
        assert!(!answer.contains("transfer-encoding"));

        let mut served = serve(&tools, &answers);
        served.raw.send("GET / HTTP/1.0\r\n\r\n").await;
        let (answer, closed) = served.raw.receive().await;
        assert!(closed && answer.ends_with("hello"));
    });
}

#[test]
fn an_answer_may_begin_while_the_request_is_still_coming() {
    run(|tools| async move {
        let mirror =
            service(|inbound: Inbound| async move { reply(200, Box::pin(inbound.request.into_body())) });
        let mut served = serve(&tools, &mirror);
        let answer = served
            .raw
            .ask("POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
            .await;
        assert_eq!(statuses(&answer), ["200"]);
        assert_eq!(served.raw.ask("3\r\nabc\r\n").await, "3\r\nabc\r\n");
        assert_eq!(
            served.raw.ask("0\r\nx-sum: 1\r\n\r\n").await,
            "0\r\nx-sum: 1\r\n\r\n"
        );
        // And the connection goes on.
        assert_eq!(statuses(&served.raw.ask(GET).await), ["200"]);
    });
}

struct OnDrop(Rc<Cell<bool>>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

#[test]
fn a_client_that_leaves_cancels_its_request() {
    run(|tools| async move {
        let dropped = Rc::new(Cell::new(false));
        let seen = Rc::clone(&dropped);
        let hanging = service(move |_: Inbound| {
            let guard = OnDrop(Rc::clone(&seen));
            async move {
                let _guard = guard;
                pending().await
            }
        });
        let mut served = serve(&tools, &hanging);
        served.raw.send(GET).await;
        sleep(secs(1)).await;
        drop(served.raw);
        assert!(matches!(served.ended.await.unwrap(), Ended::ClientGone));
        assert!(dropped.get());
        drop(hanging);
        assert_eq!(tools.wheel.timers(), 0);
    });
}

#[test]
fn a_client_that_leaves_inside_an_answer_is_noticed_while_there_is_nothing_to_send() {
    run(|tools| async move {
        let script = tools.clone();
        let streaming = service(move |_: Inbound| {
            let script = script.clone();
            async move {
                reply(
                    200,
                    Script::new(&script, [Step::Data("abc".into()), Step::Hang]).boxed(),
                )
            }
        });
        let mut served = serve(&tools, &streaming);
        assert!(served.raw.ask(GET).await.ends_with("3\r\nabc\r\n"));
        drop(served.raw);
        assert!(matches!(served.ended.await.unwrap(), Ended::ClientGone));
    });
}

#[test]
fn a_stalled_upload_is_answered_and_the_connection_closed() {
    run(|tools| async move {
        let mut served = serve(&tools, &echo());
        served
            .raw
            .send("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc")
            .await;
        let (answer, closed) = served.raw.receive_for(secs(40)).await;
        assert_eq!(statuses(&answer), ["408"]);
        assert!(closed && answer.contains("connection: close"));
    });
}

#[test]
fn a_malformed_upload_is_answered_and_the_connection_closed() {
    run(|tools| async move {
        let mut served = serve(&tools, &echo());
        let answer = served
            .raw
            .ask("POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nGET / HTTP/1.1\r\nhost: x\r\n\r\n")
            .await;
        assert_eq!(statuses(&answer), ["400"]);
        assert!(answer.contains("connection: close"));
        assert!(served.raw.receive_for(secs(3)).await.1);
    });
}

#[test]
fn an_upload_that_ends_early_is_an_error_and_no_request() {
    run(|tools| async move {
        let mut served = serve(&tools, &echo());
        served
            .raw
            .send("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc")
            .await;
        served.raw.io.shutdown().await.unwrap();
        let (answer, closed) = served.raw.receive().await;
        assert_eq!(statuses(&answer), ["400"]);
        assert!(closed);
    });
}

#[test]
fn a_trailer_that_must_not_come_late_ends_the_connection() {
    run(|tools| async move {
        let mut served = serve(&tools, &echo());
        let answer = served
            .raw
            .ask(format!("POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nhost: y\r\n\r\n{GET}"))
            .await;
        assert_eq!(statuses(&answer), ["200"]);
        assert!(answer.contains("connection: close"));
    });
}

#[test]
fn a_trickle_is_cut_off_and_a_slow_service_not_held_against_its_client() {
    run(|tools| async move {
        let mut served = serve(&tools, &echo());
        served
            .raw
            .send("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n")
            .await;
        let mut answer = String::new();
        for _ in 0..30 {
            served.raw.send("a").await;
            answer = served.raw.receive_for(Duration::from_millis(900)).await.0;
            if !answer.is_empty() {
                break;
            }
        }
        assert_eq!(statuses(&answer), ["408"]);

        // The client has sent all it can; the service takes its time between two reads.
        let lazy = service(|inbound: Inbound| async move {
            let mut body = inbound.request.into_body();
            let mut count = 0;
            loop {
                sleep(secs(20)).await;
                match poll_fn(|cx| http_body::Body::poll_frame(std::pin::Pin::new(&mut body), cx)).await {
                    Some(Ok(frame)) => count += frame.data_ref().map_or(0, Bytes::len),
                    Some(Err(error)) => return text(500, error.to_string()),
                    None => return text(200, count.to_string()),
                }
            }
        });
        let mut served = serve_with(&tools, &lazy, settings(), 64);
        served
            .raw
            .send("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 300\r\n\r\n")
            .await;
        served.raw.send([b'x'; 300]).await;
        let (answer, _) = served.raw.receive_for(secs(600)).await;
        assert!(answer.ends_with("300"), "{answer}");
    });
}

#[test]
fn a_reader_that_stops_is_cut_off_and_a_slow_one_is_not() {
    run(|tools| async move {
        let large = service(|_: Inbound| async {
            let mut reply = text(200, vec![b'x'; 100_000]);
            reply.idle = Some(secs(10));
            reply
        });
        let mut served = serve_with(&tools, &large, settings(), 1024);
        served.raw.send(GET).await;
        assert!(matches!(
            served.ended.await.unwrap(),
            Ended::AnswerFailed(BodyError::Stalled)
        ));

        let mut served = serve_with(&tools, &large, settings(), 1024);
        served.raw.send(GET).await;
        let mut buffer = vec![0; 1024];
        let mut count = 0;
        while count < 100_000 {
            sleep(secs(9)).await;
            count += served.raw.io.read(&mut buffer).await.unwrap();
        }
    });
}

#[test]
fn interim_answers_reach_the_client_in_order_and_are_bounded() {
    run(|tools| async move {
        let early = service(|inbound: Inbound| async move {
            let mut headers = HeaderMap::new();
            headers.insert(header::LINK, HeaderValue::from_static("</a>"));
            inbound.early.send(StatusCode::EARLY_HINTS, &headers);
            sleep(secs(1)).await;
            let late = inbound.early.clone();
            tokio::task::spawn_local(async move {
                sleep(secs(1)).await;
                late.send(StatusCode::EARLY_HINTS, &HeaderMap::new());
            });
            text(200, "x")
        });
        let mut served = serve(&tools, &early);
        served.raw.send(GET).await;
        let answer = served.raw.receive().await.0;
        assert!(answer.ends_with("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"));
        assert_eq!(statuses(&served.raw.receive_for(secs(5)).await.0), ["200"]);
        // Clients of HTTP/1.0 know no interim answers.
        let answer = served.raw.ask("GET / HTTP/1.0\r\n\r\n").await;
        sleep(secs(2)).await;
        assert_eq!(statuses(&(answer + &served.raw.receive().await.0)), ["200"]);

        let flood = service(|inbound: Inbound| async move {
            let mut headers = HeaderMap::new();
            headers.insert(header::LINK, HeaderValue::from_str(&"x".repeat(10_000)).unwrap());
            for _ in 0..1000 {
                inbound.early.send(StatusCode::EARLY_HINTS, &headers);
            }
            text(200, "x")
        });
        let mut served = serve(&tools, &flood);
        let answer = served.raw.ask(GET).await;
        assert!(answer.len() < 40_000 && statuses(&answer).ends_with(&["200"]));
    });
}

#[test]
fn an_answer_that_breaks_off_cannot_be_mistaken_for_a_whole_one() {
    run(|tools| async move {
        let script = tools.clone();
        let broken = service(move |inbound: Inbound| {
            let script = script.clone();
            async move {
                let steps = |last| [Step::Data("abc".into()), last];
                match inbound.request.uri().path() {
                    "/chunks" => reply(
                        200,
                        Script::new(&script, steps(Step::Fail(BodyError::Truncated))).boxed(),
                    ),
                    "/short" => reply(
                        200,
                        Script::new(&script, [Step::Data("abc".into())])
                            .of_length(5)
                            .boxed(),
                    ),
                    _ => reply(
                        200,
                        Script::new(&script, steps(Step::Data("defg".into())))
                            .of_length(5)
                            .boxed(),
                    ),
                }
            }
        });
        for (path, end) in [
            ("/chunks", "3\r\nabc\r\n"),
            ("/short", "\r\n\r\nabc"),
            ("/long", "\r\n\r\nabc"),
        ] {
            let mut served = serve(&tools, &broken);
            served
                .raw
                .send(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n"))
                .await;
            let (answer, closed) = served.raw.receive().await;
            assert!(closed && answer.ends_with(end), "{path}: {answer}");
            assert!(matches!(served.ended.await.unwrap(), Ended::AnswerFailed(_)));
        }
    });
}

#[test]
fn a_draining_connection_answers_once_more_or_closes_after_a_grace() {
    run(|tools| async move {
        let mut served = serve(&tools, &echo());
        assert_eq!(statuses(&served.raw.ask(GET).await), ["200"]);
        sleep(secs(5)).await;
        served.drain.begin();
        sleep(Duration::from_millis(500)).await;
        let answer = served.raw.ask(GET).await;
        assert_eq!(statuses(&answer), ["200"]);
        assert!(answer.contains("connection: close"));
        assert!(served.raw.receive_for(secs(3)).await.1);
        assert!(matches!(served.ended.await.unwrap(), Ended::Cleanly));
        assert_eq!(served.drain.members(), 0);

        let mut served = serve(&tools, &echo());
        sleep(secs(5)).await;
        served.drain.begin();
        assert_eq!(
            served.raw.receive_for(Duration::from_millis(1100)).await,
            (String::new(), true)
        );
    });
}

#[test]
fn an_announced_end_is_told_by_the_next_answer_and_closes_nothing_that_is_idle() {
    run(|tools| async move {
        let mut served = serve(&tools, &echo());
        served.drain.announce();
        sleep(secs(5)).await;
        let answer = served.raw.ask(GET).await;
        assert_eq!(statuses(&answer), ["200"]);
        assert!(answer.contains("connection: close"));
        assert!(served.raw.receive_for(secs(3)).await.1);

        let mut served = serve(&tools, &echo());
        served.drain.announce();
        served.drain.retract();
        assert!(!served.raw.ask(GET).await.contains("connection: close"));
        served.drain.begin();
        served.drain.retract();
        assert!(served.raw.ask(GET).await.contains("connection: close"));
    });
}

#[test]
fn an_answer_that_is_being_sent_is_finished_while_draining() {
    run(|tools| async move {
        let script = tools.clone();
        let slow = service(move |_: Inbound| {
            let script = script.clone();
            async move {
                reply(
                    200,
                    Script::new(
                        &script,
                        [
                            Step::Data("a".into()),
                            Step::Wait(secs(5)),
                            Step::Data("b".into()),
                        ],
                    )
                    .boxed(),
                )
            }
        });
        let mut served = serve(&tools, &slow);
        served.raw.send(GET).await;
        sleep(secs(1)).await;
        served.drain.begin();
        let (answer, closed) = served.raw.receive_for(secs(6)).await;
        assert!(closed && answer.ends_with("1\r\nb\r\n0\r\n\r\n"));
    });
}

#[test]
fn requests_and_age_of_a_connection_are_limited_and_the_last_answer_says_so() {
    run(|tools| async move {
        let limited = Settings {
            max_requests: Some(2),
            ..settings()
        };
        let mut served = serve_with(&tools, &echo(), limited, 64 * 1024);
        assert!(!served.raw.ask(GET).await.contains("close"));
        assert!(served.raw.ask(GET).await.contains("connection: close"));

        let aging = Settings {
            max_age: Some(secs(100)),
            ..settings()
        };
        let mut served = serve_with(&tools, &echo(), aging, 64 * 1024);
        for _ in 0..2 {
            sleep(secs(40)).await;
            assert!(!served.raw.ask(GET).await.contains("close"));
        }
        // An old connection without a request is closed, not kept for another idle period.
        let (answer, closed) = served.raw.receive_for(secs(31)).await;
        assert!(closed && answer.is_empty());
    });
}

#[test]
fn an_upgraded_connection_hands_over_what_was_read_ahead() {
    run(|tools| async move {
        let upgrading = service(|_: Inbound| async {
            let mut reply = text(101, "");
            reply
                .head
                .headers
                .insert(header::UPGRADE, HeaderValue::from_static("echo"));
            reply.tunnel = Some(Box::new(|mut tunnel| {
                Box::pin(async move {
                    let (near, far) = memory::pair(1024);
                    let mut far = Raw { io: far };
                    let echo = tokio::task::spawn_local(async move {
                        let mut text = [0; 10];
                        far.io.read_exact(&mut text).await.unwrap();
                        far.send(text).await;
                    });
                    let mut end = crate::wire::Tunnel::stream(near, Bytes::new());
                    let wheel = crate::net::wheel::Wheel::new(crate::net::clock::Clock::start());
                    crate::wire::tunnel::copy(&mut tunnel, &mut end, &wheel, None).await;
                    echo.await.unwrap();
                })
            }));
            reply
        });
        let head = "GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: echo\r\n";
        let mut served = serve(&tools, &upgrading);
        let answer = served.raw.ask(format!("{head}\r\nearly")).await;
        assert!(answer.starts_with("HTTP/1.1 101 ") && answer.contains("upgrade: echo\r\n"));
        assert_eq!(served.raw.ask(" late").await, "early late");

        // With a rest of the content unread there is no telling where the other protocol begins.
        let mut served = serve(&tools, &upgrading);
        served
            .raw
            .send(format!("{head}content-length: 5\r\n\r\nabc"))
            .await;
        let (answer, closed) = served.raw.receive().await;
        assert!(closed && answer.is_empty());
        assert!(matches!(served.ended.await.unwrap(), Ended::AnswerFailed(_)));
    });
}

#[test]
fn an_idle_connection_is_small() {
    run(|tools| async move {
        let (_near, far) = memory::pair(64);
        let drain = Rc::<Drain>::default();
        let mut dice = Dice::new(1);
        let future = server::serve(
            far,
            echo(),
            Arc::new(settings()),
            tools.clone(),
            &drain,
            &mut dice,
        );
        let size = size_of_val(&future);
        assert!(size <= 2048, "{size} bytes");
    });
}

// The client side.

fn outgoing<'a>(method: &'a Method, headers: &'a HeaderMap) -> Outgoing<'a> {
    Outgoing {
        method,
        target: b"/",
        headers,
        added: &[],
        upgrade: None,
    }
}

fn host() -> HeaderMap {
    HeaderMap::from_iter([(header::HOST, HeaderValue::from_static("x"))])
}

async fn last<B>(exchange: &mut Exchange<B>) -> Result<super::head::ResponseHead, ExchangeError>
where
    B: http_body::Body<Data = Bytes, Error = BodyError> + Unpin,
{
    loop {
        if let Answer::Final(head) = poll_fn(|cx| exchange.poll_answer(cx)).await? {
            return Ok(head);
        }
    }
}

async fn content<B>(exchange: &mut Exchange<B>) -> Result<Vec<u8>, BodyError>
where
    B: http_body::Body<Data = Bytes, Error = BodyError> + Unpin,
{
    let mut all = Vec::new();
    while let Some(frame) = poll_fn(|cx| exchange.poll_frame(cx)).await {
        if let Ok(data) = frame?.into_data() {
            all.extend_from_slice(&data);
        }
    }
    Ok(all)
}

/// Sends a GET to an endpoint that says `answer` and then closes its sending half.
async fn against(
    method: Method,
    answer: &str,
) -> (
    Result<Result<Vec<u8>, BodyError>, ExchangeError>,
    Option<Connection>,
) {
    let (near, mut far) = memory::pair(1 << 20);
    far.write_all(answer.as_bytes()).await.unwrap();
    let mut exchange = Exchange::start(
        Connection::new(near),
        &outgoing(&method, &host()),
        RequestBody::Empty,
    );
    if let Err(error) = last(&mut exchange).await {
        return (Err(error), exchange.into_connection());
    }
    far.shutdown().await.unwrap();
    let content = content(&mut exchange).await;
    (Ok(content), exchange.into_connection())
}

#[test]
fn a_connection_is_reused_only_after_a_flawless_answer() {
    run(|_| async {
        for (answer, reusable) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", true),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
                true,
            ),
            ("HTTP/1.1 204 No Content\r\n\r\n", true),
            (
                "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
                true,
            ),
            // Bytes that nobody asked for.
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\n",
                false,
            ),
            ("HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\n", false),
            (
                "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi",
                false,
            ),
            ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi", false),
            ("HTTP/1.1 200 OK\r\n\r\nhi", false),
            // A trailer that must not come late.
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\ncontent-length: 5\r\n\r\n",
                false,
            ),
        ] {
            let (result, connection) = against(Method::GET, answer).await;
            result.unwrap().unwrap();
            assert_eq!(connection.is_some(), reusable, "{answer:?}");
        }
        let (result, connection) =
            against(Method::HEAD, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n").await;
        assert_eq!(result.unwrap().unwrap(), b"");
        assert_eq!(connection.unwrap().exchanges(), 1);
    });
}

#[test]
fn a_hostile_answer_is_an_error() {
    run(|_| async {
        let flood = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(17);
        for answer in [
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n",
            "SSH-2.0-x\r\n",
            "HTTP/1.1 099 No\r\n\r\n",
            flood.as_str(),
        ] {
            let (result, connection) = against(Method::GET, answer).await;
            assert!(matches!(result, Err(ExchangeError::Protocol(_))), "{answer:?}");
            assert!(connection.is_none());
        }
        for answer in [
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nhi",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n",
        ] {
            let (result, connection) = against(Method::GET, answer).await;
            assert!(matches!(result, Ok(Err(BodyError::Truncated))), "{answer:?}");
            assert!(connection.is_none());
        }
    });
}

/// Ends with this error after its bytes, as TLS does without a `close_notify` and TCP with a reset.
struct Fails(
    tokio_util::io::StreamReader<
        futures_util::stream::Iter<std::vec::IntoIter<std::io::Result<Bytes>>>,
        Bytes,
    >,
);

impl tokio::io::AsyncRead for Fails {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl tokio::io::AsyncWrite for Fails {
    fn poll_write(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::task::Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }
}

#[test]
fn an_answer_that_ends_with_its_connection_is_whole_only_if_that_ended_in_order() {
    run(|_| async {
        for kind in [
            std::io::ErrorKind::UnexpectedEof,
            std::io::ErrorKind::ConnectionReset,
        ] {
            let reads = vec![
                Ok(Bytes::from_static(b"HTTP/1.1 200 OK\r\n\r\nhalf of")),
                Err(kind.into()),
            ];
            let stream = Fails(tokio_util::io::StreamReader::new(futures_util::stream::iter(
                reads,
            )));
            let connection = Connection::new(Io::boxed(stream));
            let mut exchange =
                Exchange::start(connection, &outgoing(&Method::GET, &host()), RequestBody::Empty);
            last(&mut exchange).await.unwrap();
            // RFC 9112 §9.8: without a closure alert the answer is incomplete.
            assert!(
                matches!(content(&mut exchange).await, Err(BodyError::Truncated)),
                "{kind}"
            );
        }
    });
}

#[test]
fn an_early_answer_counts_although_the_upload_fails_or_is_not_wanted() {
    run(|tools| async move {
        // It answers and closes while more is being sent than fits into the pipe.
        let (near, mut far) = memory::pair(1024);
        far.write_all(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\nno")
            .await
            .unwrap();
        drop(far);
        let body = RequestBody::Full(Bytes::from(vec![0; 100_000]));
        let mut exchange = Exchange::start(Connection::new(near), &outgoing(&Method::POST, &host()), body);
        assert_eq!(last(&mut exchange).await.unwrap().status, 413);
        assert_eq!(content(&mut exchange).await.unwrap(), b"no");
        assert!(exchange.into_connection().is_none());

        // It answers in full and the upload never ends: the connection is not clean.
        let (near, mut far) = memory::pair(1024);
        far.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            .await
            .unwrap();
        let body = Script::new(&tools, [Step::Data("abc".into()), Step::Hang]);
        let mut exchange = Exchange::start(Connection::new(near), &outgoing(&Method::POST, &host()), body);
        assert_eq!(last(&mut exchange).await.unwrap().status, 200);
        assert_eq!(content(&mut exchange).await.unwrap(), b"ok");
        assert!(exchange.into_connection().is_none());
    });
}

#[test]
fn an_upload_whose_client_left_ends_the_answer_and_another_failure_does_not() {
    run(|tools| async move {
        for (error, whole) in [(BodyError::Truncated, false), (BodyError::TooLarge, true)] {
            let (near, mut far) = memory::pair(1024);
            far.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no")
                .await
                .unwrap();
            let body = Script::new(
                &tools,
                [Step::Data("abc".into()), Step::Wait(secs(1)), Step::Fail(error)],
            );
            let mut exchange =
                Exchange::start(Connection::new(near), &outgoing(&Method::POST, &host()), body);
            last(&mut exchange).await.unwrap();
            tokio::task::spawn_local(async move {
                sleep(secs(5)).await;
                far.write_all(b"k").await.unwrap();
                sleep(secs(5)).await;
            });
            assert_eq!(content(&mut exchange).await.is_ok(), whole);
            assert!(exchange.into_connection().is_none());
        }
        // Before the answer it is the request that failed.
        let (near, _far) = memory::pair(1024);
        let body = Script::new(&tools, [Step::Fail(BodyError::Stalled)]);
        let mut exchange = Exchange::start(Connection::new(near), &outgoing(&Method::POST, &host()), body);
        assert!(matches!(
            last(&mut exchange).await,
            Err(ExchangeError::Request(BodyError::Stalled))
        ));
    });
}

#[test]
fn a_switch_of_protocols_inside_the_request_is_refused() {
    run(|tools| async move {
        let (near, mut far) = memory::pair(1024);
        far.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n")
            .await
            .unwrap();
        let (upgrade, headers) = (HeaderValue::from_static("x"), host());
        let line = Outgoing {
            upgrade: Some(&upgrade),
            ..outgoing(&Method::POST, &headers)
        };
        let body = Script::new(&tools, [Step::Data("abc".into()), Step::Hang]);
        let mut exchange = Exchange::start(Connection::new(near), &line, body);
        assert!(matches!(
            last(&mut exchange).await,
            Err(ExchangeError::Protocol("early_101"))
        ));
    });
}

#[test]
fn whether_anything_was_sent_and_answered_is_known_exactly() {
    run(|_| async {
        let (near, far) = memory::pair(1024);
        drop(far);
        let mut exchange = Exchange::start(
            Connection::new(near),
            &outgoing(&Method::GET, &host()),
            RequestBody::Empty,
        );
        assert!(matches!(last(&mut exchange).await, Err(ExchangeError::Lost(_))));
        assert!(!exchange.is_sent() && !exchange.is_answered() && !exchange.is_reused());

        let (near, mut far) = memory::pair(1024);
        far.write_all(b"HT").await.unwrap();
        far.shutdown().await.unwrap();
        let mut exchange = Exchange::start(
            Connection::new(near),
            &outgoing(&Method::GET, &host()),
            RequestBody::Empty,
        );
        assert!(matches!(last(&mut exchange).await, Err(ExchangeError::Lost(_))));
        assert!(exchange.is_sent() && exchange.is_answered());
    });
}

// Both sides, back to back.

fn steps(chunks: &[(usize, bool)]) -> (Vec<Step>, Vec<u8>) {
    let mut all = Vec::new();
    let mut steps = Vec::new();
    for &(length, wait) in chunks {
        let data: Vec<u8> = (all.len()..all.len() + length)
            .map(|at| (at % 251) as u8)
            .collect();
        all.extend_from_slice(&data);
        if wait {
            steps.push(Step::Wait(Duration::from_millis(20)));
        }
        steps.push(Step::Data(data.into()));
    }
    (steps, all)
}

fn chunks() -> impl Strategy<Value = Vec<(usize, bool)>> {
    let length = prop_oneof![0..4_usize, 1..2000_usize, 7000..70_000_usize];
    proptest::collection::vec((length, any::<bool>()), 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever the sizes of chunks, buffers and pauses, both sides see the same bytes, and the connection goes on.
    #[test]
    fn bytes_arrive_as_they_were_sent(
        exchanges in proptest::collection::vec((chunks(), chunks(), any::<[bool; 3]>()), 1..4),
        capacity in prop_oneof![1..64_usize, 64..100_000_usize],
    ) {
        run(|tools| async move {
            let script = tools.clone();
            let plan = Rc::new(RefCell::new(Vec::new()));
            let planned = Rc::clone(&plan);
            let scripted = service(move |inbound: Inbound| {
                let (steps, length, first): (Vec<Step>, Option<u64>, bool) = planned.borrow_mut().pop().unwrap();
                let script = script.clone();
                async move {
                    let mut body = inbound.request.into_body();
                    let seen = Rc::new(RefCell::new(Bytes::new()));
                    let mut answer = Script::new(&script, steps);
                    if let Some(length) = length {
                        answer = answer.of_length(length);
                    }
                    if first {
                        *seen.borrow_mut() = collect(&mut body).await.unwrap();
                        return reply(200, Box::pin(Both { answer, upload: None }));
                    }
                    reply(200, Box::pin(Both { answer, upload: Some(body) }))
                }
            });
            let served = serve_with(&tools, &scripted, settings(), capacity);
            let mut connection = Connection::new(served.raw.io);
            for (up, down, [sized, answer_sized, first]) in exchanges {
                let (up_steps, up_bytes) = steps(&up);
                let (down_steps, down_bytes) = steps(&down);
                // An answer of known length may be complete before the request is, which ends the connection.
                let length = (answer_sized && first).then_some(down_bytes.len() as u64);
                plan.borrow_mut().push((down_steps, length, first));
                let mut body = Script::new(&tools, up_steps);
                if sized {
                    body = body.of_length(up_bytes.len() as u64);
                }
                let mut exchange = Exchange::start(connection, &outgoing(&Method::POST, &host()), body);
                assert_eq!(last(&mut exchange).await.unwrap().status, 200);
                assert_eq!(content(&mut exchange).await.unwrap(), down_bytes);
                connection = exchange.into_connection().expect("the connection goes on");
            }
        });
    }
}

/// An answer that goes on reading the request, and ends when both have ended.
struct Both {
    answer: Script,
    upload: Option<RequestBody>,
}

impl http_body::Body for Both {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, BodyError>>> {
        use std::pin::Pin;
        use std::task::Poll;
        while let Some(upload) = self.upload.as_mut() {
            match Pin::new(upload).poll_frame(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => self.upload = None,
                Poll::Pending => break,
            }
        }
        match Pin::new(&mut self.answer).poll_frame(cx) {
            Poll::Ready(None) if self.upload.is_some() => Poll::Pending,
            other => other,
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.answer.size_hint()
    }
}
