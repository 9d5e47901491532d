//! The diagnostic log: what the program says about itself, on standard error.
//!
//! Text on a terminal, JSON otherwise, unless the configuration says which; the level can be changed while it runs. It
//! belongs to the control path: nothing on the request path writes here above `debug`, and release builds have no
//! `trace` at all. Lines are written by whoever speaks, which is why the request path must not speak.

use std::io::{self, IsTerminal};

use tracing::level_filters::LevelFilter;
use tracing::subscriber::SetGlobalDefaultError;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Only what is broken.
    Error,
    /// And what will be.
    Warn,
    /// And what changed.
    Info,
    /// And why.
    Debug,
    /// Everything; the same as `Debug` in release builds.
    Trace,
}

impl LogLevel {
    const fn filter(self) -> LevelFilter {
        match self {
            Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
            Self::Trace => LevelFilter::TRACE,
        }
    }

    /// The word in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    /// The level with this word.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace]
            .into_iter()
            .find(|level| level.name() == name)
    }
}

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Changes the level of a running log.
#[derive(Clone, Debug)]
pub struct LogControl {
    handle: reload::Handle<LevelFilter, Registry>,
}

impl LogControl {
    /// Says so much from now on. Does nothing after the subscriber is gone.
    pub fn set_level(&self, level: LogLevel) {
        // The error says that nobody is left to filter for.
        _ = self.handle.reload(level.filter());
    }

    /// How much is said now.
    pub fn level(&self) -> LogLevel {
        let filter = self.handle.clone_current();
        let levels = [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug];
        levels
            .into_iter()
            .find(|level| Some(level.filter()) == filter)
            .unwrap_or(LogLevel::Trace)
    }
}

/// Sends everything the program says to standard error.
///
/// # Errors
/// Somebody did so before.
pub fn install(level: LogLevel, format: LogFormat) -> Result<LogControl, SetGlobalDefaultError> {
    let terminal = io::stderr().is_terminal();
    let format = match format {
        LogFormat::Auto if terminal => LogFormat::Text,
        LogFormat::Auto => LogFormat::Json,
        LogFormat::Text | LogFormat::Json => format,
    };
    // Colours only for eyes, and not for those who asked not to (https://no-color.org).
    let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let (subscriber, control) = subscriber(level, format, colours, io::stderr);
    tracing::subscriber::set_global_default(subscriber)?;
    Ok(control)
}

pub(crate) fn subscriber<W>(
    level: LogLevel,
    format: LogFormat,
    colours: bool,
    writer: W,
) -> (impl tracing::Subscriber + Send + Sync, LogControl)
where
    W: for<'w> fmt::MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(level.filter());
    let lines = match format {
        LogFormat::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(writer)
            .boxed(),
        LogFormat::Text | LogFormat::Auto => fmt::layer()
            .with_ansi(colours)
            .with_target(false)
            .with_writer(writer)
            .boxed(),
    };
    (
        Registry::default().with(filter).with(lines),
        LogControl { handle },
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Lines {
        fn take(&self) -> String {
            String::from_utf8(std::mem::take(&mut *self.0.lock())).unwrap()
        }
    }

    #[test]
    fn the_level_changes_while_it_runs() {
        let lines = Lines::default();
        let writer = lines.clone();
        let (subscriber, control) =
            subscriber(LogLevel::Info, LogFormat::Text, false, move || writer.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!("quiet");
            tracing::info!(answer = 42, "loud");
            let text = lines.take();
            assert!(
                text.contains("loud answer=42") && !text.contains("quiet"),
                "{text}"
            );
            control.set_level(LogLevel::Debug);
            tracing::debug!("now");
            assert!(lines.take().contains("now"));
            control.set_level(LogLevel::Error);
            tracing::warn!("never");
            assert_eq!((lines.take().as_str(), control.level()), ("", LogLevel::Error));
        });
    }

    #[test]
    fn a_json_line_is_an_object_whatever_the_message_holds() {
        let lines = Lines::default();
        let writer = lines.clone();
        let (subscriber, _control) =
            subscriber(LogLevel::Info, LogFormat::Json, false, move || writer.clone());
        tracing::subscriber::with_default(subscriber, || tracing::info!(name = "a\"\n\u{1b}", "two\nlines"));
        let text = lines.take();
        assert_eq!(text.lines().count(), 1);
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&line["message"], &line["level"], &line["name"]),
            (&"two\nlines".into(), &"INFO".into(), &"a\"\n\u{1b}".into())
        );
    }

    #[test]
    fn every_level_has_its_word() {
        for level in [
            LogLevel::Error,
            LogLevel::Warn,
            LogLevel::Info,
            LogLevel::Debug,
            LogLevel::Trace,
        ] {
            assert_eq!(LogLevel::from_name(level.name()), Some(level));
        }
        assert_eq!(LogLevel::from_name("loud"), None);
    }
}
