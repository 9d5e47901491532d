//! `bellwether demo`: three small services and the proxy in front of them, in one process, with nothing to install.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::check;
use super::run;
use crate::config::read::Reader;

/// Starts three small services and the proxy in front of them, to try things out.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Where the proxy listens
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    listen: String,
    /// Where metrics and the API are
    #[arg(long, default_value = "127.0.0.1:9900", value_name = "ADDRESS")]
    admin: String,
}

/// Runs the command.
#[must_use]
pub fn run(args: &DemoArgs) -> ExitCode {
    let began = Instant::now();
    let given = match run::Given::receive() {
        Ok(given) => given,
        Err(code) => return code,
    };
    let services = match services() {
        Ok(services) => services,
        Err(error) => {
            check::complain(&format!(
                "error: the demo's services could not be started: {error}\n"
            ));
            return ExitCode::from(4);
        }
    };
    let text = configuration(args, &services);
    let document = match Reader::new().read_bytes("the demo's configuration", text.as_bytes()) {
        Ok(document) => document,
        Err(diagnostics) => {
            let failure = check::Failure {
                diagnostics,
                name: "demo".to_owned(),
                code: 3,
            };
            return failure.report(check::Format::Text, check::look(false));
        }
    };
    let source = Box::new(move || Reader::new().read_bytes("the demo's configuration", text.as_bytes()));
    let greeting = introduction(args, &services);
    run::serve(document, "demo".to_owned(), source, None, began, &greeting, given)
}

/// In turn, so that the next answer visibly comes from the next service; Ctrl-C ends at once, nobody has to be told.
fn configuration(args: &DemoArgs, services: &[SocketAddr]) -> String {
    let endpoints: Vec<String> = services.iter().map(|service| format!("\"{service}\"")).collect();
    format!(
        "listeners:\n  web: \"{}\"\nroutes:\n  - name: hello\n    cluster: app\nclusters:\n  app:\n    \
         endpoints: [{}]\n    load_balancing: round_robin\n    health_check: {{ path: /healthz, interval: 1s, timeout: 500ms }}\n\
         admin:\n  address: \"{}\"\ntelemetry:\n  access_log: {{ format: text }}\n\
         runtime:\n  drain: {{ min: 0s, max: 5s }}\n",
        args.listen,
        endpoints.join(", "),
        args.admin
    )
}

fn introduction(args: &DemoArgs, services: &[SocketAddr]) -> String {
    let mut text = String::from("\nthree services are behind it:\n");
    for (index, service) in services.iter().enumerate() {
        text.push_str(&format!("  app-{}    http://{service}/\n", index + 1));
    }
    let (listen, admin, first) = (&args.listen, &args.admin, services[0]);
    let tries = [
        (
            format!("http://{listen}/"),
            "each answer names the service that gave it",
        ),
        (
            format!("http://{first}/fail/on"),
            "app-1 now fails its health check and answers 503: watch it leave",
        ),
        (format!("http://{first}/fail/off"), "and come back"),
        (format!("http://{admin}/metrics"), "what Prometheus sees"),
        (format!("http://{admin}/readyz"), "what a probe sees"),
    ];
    text.push_str("\ntry, in another terminal:\n");
    for (address, what) in tries {
        text.push_str(&format!("  curl {address:<34} {what}\n"));
    }
    text.push('\n');
    text
}

/// Starts three services on ports of the kernel's choice, on a thread of their own.
fn services() -> io::Result<Vec<SocketAddr>> {
    let listeners = (0..3)
        .map(|_| {
            let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })
        .collect::<io::Result<Vec<_>>>()?;
    let addresses = listeners
        .iter()
        .map(std::net::TcpListener::local_addr)
        .collect::<io::Result<Vec<_>>>()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("demo".to_owned())
        .spawn(move || {
            runtime.block_on(async move {
                for (index, listener) in listeners.into_iter().enumerate() {
                    match TcpListener::from_std(listener) {
                        Ok(listener) => drop(tokio::spawn(service(listener, index + 1))),
                        Err(error) => tracing::error!(%error, "a demo service could not be started"),
                    }
                }
                std::future::pending::<()>().await;
            });
        })?;
    Ok(addresses)
}

#[derive(Debug, Default)]
struct State {
    answered: AtomicU64,
    failing: std::sync::atomic::AtomicBool,
}

async fn service(listener: TcpListener, number: usize) {
    let state = Arc::new(State::default());
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a demo service cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let answer = service_fn(move |request: Request<Incoming>| {
                let response = answer(&request, number, &state);
                async move { Ok::<_, Infallible>(response) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), answer)
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "a connection to a demo service ended");
            }
        });
    }
}

fn answer(request: &Request<Incoming>, number: usize, state: &State) -> Response<Full<Bytes>> {
    let (status, text) = match request.uri().path() {
        "/fail/on" | "/fail/off" => {
            let failing = request.uri().path() == "/fail/on";
            state.failing.store(failing, Ordering::Relaxed);
            (
                StatusCode::OK,
                format!("app-{number} {}\n", if failing { "fails" } else { "is well" }),
            )
        }
        _ if state.failing.load(Ordering::Relaxed) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("app-{number} fails on request\n"),
        ),
        "/healthz" => (StatusCode::OK, "ok\n".to_owned()),
        path => {
            let count = state.answered.fetch_add(1, Ordering::Relaxed) + 1;
            (
                StatusCode::OK,
                format!(
                    "hello from app-{number}: {} {path}, answer {count}\n",
                    request.method()
                ),
            )
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn arguments() -> DemoArgs {
        DemoArgs {
            listen: "127.0.0.1:8080".to_owned(),
            admin: "127.0.0.1:9900".to_owned(),
        }
    }

    #[test]
    fn the_configuration_has_nothing_to_complain_about() {
        let text = configuration(&arguments(), &[SocketAddr::from(([127, 0, 0, 1], 9001))]);
        let document = Reader::new().read_bytes("demo", text.as_bytes()).unwrap();
        let said = crate::config::render::text(&document.diagnostics, crate::config::render::Look::default());
        assert_eq!(said, "");
    }

    #[test]
    fn what_to_try_stands_in_columns() {
        let said = introduction(&arguments(), &[SocketAddr::from(([127, 0, 0, 1], 40_123))]);
        let columns: BTreeSet<usize> = said
            .lines()
            .filter_map(|line| line.strip_prefix("  curl "))
            .map(|line| line.len() - line.trim_start_matches(|c| c != ' ').trim_start().len())
            .collect();
        assert_eq!(columns.len(), 1, "{said}");
    }
}
