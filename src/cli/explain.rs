//! `bellwether explain METHOD URL`: which listener, which route and why not the earlier ones, which endpoints.
//!
//! Without `--live` the configuration file is compiled and asked, so no proxy is needed; with it the running proxy
//! answers from what is in force, with the state of its endpoints.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::check;
use super::client::{self, AdminArgs, Failure};
use crate::admin::{Explanation, Question, Values, explain};
use crate::snapshot::compile;

/// Shows what would become of a request.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// For example `GET`
    method: String,
    /// For example `https://shop.example/orders`
    url: String,
    /// A header of the request, `name: value`; may be repeated
    #[arg(short = 'H', long = "header", value_name = "HEADER")]
    headers: Vec<String>,
    /// Who asks; this machine unless given
    #[arg(long, value_name = "IP")]
    client_ip: Option<IpAddr>,
    /// Where it arrives; the first listener that fits the address unless given
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    /// Ask the running proxy instead of the file
    #[arg(long)]
    live: bool,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t = Form::Text)]
    output: Form,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Form of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people.
    Text,
    /// As the API gives it.
    Json,
}

/// Runs the command.
#[must_use]
pub fn run(args: &ExplainArgs) -> ExitCode {
    let question = match question(args) {
        Ok(question) => question,
        Err(wrong) => {
            check::complain(&format!("error: {wrong}\n"));
            return ExitCode::from(2);
        }
    };
    if args.live {
        return client::run(&args.admin, async |client| {
            let content = serde_json::to_value(&question).unwrap_or_default();
            let answer = client
                .send("POST", "/api/v1/explain", Some(&content))
                .await?
                .done()?;
            let explanation = serde_json::from_value(answer).map_err(|error| Failure {
                text: format!("error: the proxy's answer is not understood: {error}\n"),
                code: 1,
            })?;
            Ok(show(&explanation, args.output))
        });
    }
    let (document, name) = match check::load(args.admin.config.as_deref()) {
        Ok(loaded) => loaded,
        Err(failure) => return failure.report(check::Format::Text, check::look(false)),
    };
    let mut diagnostics = document.diagnostics.clone();
    let Some(compiled) = compile::dry_run(&document, &mut diagnostics) else {
        let refused = check::Failure {
            diagnostics,
            name,
            code: 3,
        };
        return refused.report(check::Format::Text, check::look(false));
    };
    match explain(&compiled.snapshot, &question) {
        Ok(explanation) => show(&explanation, args.output),
        Err(error) => {
            check::complain(&format!("error: {error}\n"));
            ExitCode::from(2)
        }
    }
}

fn question(args: &ExplainArgs) -> Result<Question, String> {
    let mut headers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for header in &args.headers {
        let (name, value) = header
            .split_once(':')
            .ok_or_else(|| format!("`{header}` is not a header: write `name: value`"))?;
        let values = headers.entry(name.trim().to_ascii_lowercase()).or_default();
        values.push(value.trim().to_owned());
    }
    Ok(Question {
        method: args.method.clone(),
        url: args.url.clone(),
        headers: headers
            .into_iter()
            .map(|(name, values)| (name, Values::Many(values)))
            .collect(),
        client_ip: args.client_ip,
        listener: args.listener.clone(),
    })
}

fn show(explanation: &Explanation, form: Form) -> ExitCode {
    let text = match form {
        Form::Text => explanation.text(),
        Form::Json => {
            let json = serde_json::to_string_pretty(explanation).unwrap_or_default();
            json + "\n"
        }
    };
    let printed = client::print(&text);
    // 7: the answer is no.
    if explanation.route.is_none() {
        ExitCode::from(7)
    } else {
        printed
    }
}
