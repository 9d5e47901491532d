//! The other commands of the binary, as a user runs them: what they print, where, and how they end.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::proxy::{Start, proxy, to};
use crate::support::upstream::Upstream;

fn run(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bellwether"))
        .args(arguments)
        .current_dir(folder)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .output()
        .expect("the binary was built")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

const GOOD: &str = "listeners:\n  web: 127.0.0.1:0\nroutes:\n  - name: all\n    cluster: app\nclusters:\n  app:\n    endpoints: [127.0.0.1:9]\n";

#[tokio::test]
async fn check_says_what_is_wrong_and_starts_nothing() {
    let start = Start::new(GOOD).file("bad.yaml", "listeners:\n  web: 127.0.0.1:0\nroutes:\n  - cluster: ap\n    timeout: 5\nclusters:\n  app:\n    endpoints: [127.0.0.1:9]\n");
    let good = run(start.folder(), &["check", "-c", "bellwether.yaml"]);
    assert_eq!(good.status.code(), Some(0), "{good:?}");
    let bad = run(start.folder(), &["check", "-c", "bad.yaml"]);
    assert_eq!(bad.status.code(), Some(3), "{bad:?}");
    let said = text(&bad.stdout) + &text(&bad.stderr);
    for part in ["bad.yaml:4:14", "did you mean `app`", "bad.yaml:5:14", "^"] {
        assert!(said.contains(part), "no {part:?} in\n{said}");
    }
    // For tools: the same as JSON.
    let bad = run(start.folder(), &["check", "-c", "bad.yaml", "-o", "json"]);
    let report: serde_json::Value = serde_json::from_slice(&bad.stdout).expect("JSON");
    assert_eq!(report["errors"], 2, "{report}");
}

#[tokio::test]
async fn what_this_version_does_not_perform_is_refused_at_its_line() {
    for (block, line) in [
        ("    operation: write\n", 6),
        ("    rate_limit: { rate: 100/s, scope: fleet }\n", 6),
    ] {
        let config = GOOD.replace("    cluster: app\n", &format!("    cluster: app\n{block}"));
        let finished = Start::new(&config).fail().await;
        assert_eq!(finished.status.code(), Some(3), "{finished:?}");
        let said = &finished.stderr;
        assert!(
            said.contains("E0610")
                && said.contains("not supported by this version")
                && said.contains(&format!("bellwether.yaml:{line}")),
            "{said}"
        );
    }
    let config = GOOD.to_owned() + "    leader: patroni\n";
    let finished = Start::new(&config).fail().await;
    assert!(finished.stderr.contains("E0610"), "{}", finished.stderr);
}

#[tokio::test]
async fn the_schema_is_json_and_knows_the_blocks() {
    let start = Start::new(GOOD);
    let printed = run(start.folder(), &["schema"]);
    assert_eq!(printed.status.code(), Some(0), "{printed:?}");
    let schema: serde_json::Value = serde_json::from_slice(&printed.stdout).expect("JSON");
    for block in [
        "listeners",
        "routes",
        "clusters",
        "policies",
        "defaults",
        "telemetry",
        "admin",
        "runtime",
    ] {
        assert!(schema["properties"].get(block).is_some(), "no {block}");
    }
}

#[tokio::test]
async fn config_show_tells_where_each_value_comes_from() {
    let config = GOOD.replace("    cluster: app\n", "    cluster: app\n    timeout: 7s\n");
    let start = Start::new(&config);
    let shown = run(
        start.folder(),
        &["config", "show", "-c", "bellwether.yaml", "--origin"],
    );
    assert_eq!(shown.status.code(), Some(0), "{shown:?}");
    let shown = text(&shown.stdout);
    let line = |what: &str| {
        shown
            .lines()
            .find(|line| line.trim_start().starts_with(what))
            .unwrap_or_else(|| panic!("no {what} in\n{shown}"))
            .to_owned()
    };
    assert!(line("timeout: 7s").contains("bellwether.yaml:6"), "{shown}");
    assert!(line("idle_timeout:").contains("default"), "{shown}");
}

#[tokio::test]
async fn a_running_proxy_is_asked_and_told_by_command() {
    let upstream = Upstream::answers(200, "ok");
    let proxy = proxy(&to(&[upstream.address()])).await;
    let admin = format!("http://{}", proxy.admin());
    for arguments in [
        &["reload", "--admin", &admin][..],
        &["log-level", "debug", "--admin", &admin],
        &["explain", "GET", "http://test.example/", "--admin", &admin],
        &["wait", "--admin", &admin],
    ] {
        let folder = proxy.folder().to_owned();
        let owned: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
        let output = tokio::task::spawn_blocking(move || {
            let words: Vec<&str> = owned.iter().map(String::as_str).collect();
            run(&folder, &words)
        })
        .await
        .expect("no panic");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
    }
    assert_eq!(proxy.admin_get("/api/v1/log").await.json()["level"], "debug");
    let nowhere = run(proxy.folder(), &["reload", "--admin", "http://127.0.0.1:1"]);
    assert_eq!(nowhere.status.code(), Some(5), "{nowhere:?}");
}
