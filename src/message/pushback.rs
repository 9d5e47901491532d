//! Pushback: how long an answer asks its client to stay away.
//!
//! `Retry-After` (RFC 9110 §10.2.3: seconds, or a date) and `grpc-retry-pushback-ms` (gRFC A6: milliseconds; negative or
//! unreadable means not at all). What cannot be read in `Retry-After` says nothing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, header};

const GRPC: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// What an answer says about trying again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushback {
    /// Not before so long.
    After(Duration),
    /// Not at all.
    Never,
}

/// What these fields say, if anything; `since_epoch` is the time of day.
pub fn pushback(headers: &HeaderMap, since_epoch: Duration) -> Option<Pushback> {
    if let Some(value) = headers.get(&GRPC) {
        let millis = value
            .to_str()
            .ok()
            .and_then(|text| text.trim().parse::<i64>().ok());
        return Some(match millis.map(u64::try_from) {
            Some(Ok(millis)) => Pushback::After(Duration::from_millis(millis)),
            Some(Err(_)) | None => Pushback::Never,
        });
    }
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u32>() {
        return Some(Pushback::After(Duration::from_secs(u64::from(seconds))));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    let now = UNIX_EPOCH.checked_add(since_epoch)?;
    Some(Pushback::After(until(date, now)))
}

/// How long after `now` `date` is; nothing if it is over.
fn until(date: SystemTime, now: SystemTime) -> Duration {
    date.duration_since(now).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn of(name: &'static str, value: &'static str) -> Option<Pushback> {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_static(value));
        // Sun, 06 Nov 1994 08:49:37 GMT
        pushback(&headers, Duration::from_secs(784_111_777))
    }

    #[test]
    fn seconds_dates_and_milliseconds_are_read() {
        let after = |seconds| Some(Pushback::After(Duration::from_secs(seconds)));
        assert_eq!(of("retry-after", "120"), after(120));
        assert_eq!(of("retry-after", " 0 "), after(0));
        assert_eq!(of("retry-after", "Sun, 06 Nov 1994 08:50:07 GMT"), after(30));
        assert_eq!(of("retry-after", "Sun, 06 Nov 1994 08:00:00 GMT"), after(0));
        assert_eq!(of("grpc-retry-pushback-ms", "2000"), after(2));
    }

    #[test]
    fn what_cannot_be_read_says_nothing_or_never() {
        for nonsense in ["", "-1", "soon", "1.5", "99999999999999999999"] {
            assert_eq!(of("retry-after", nonsense), None, "{nonsense}");
        }
        for never in ["-1", "x", "", "99999999999999999999"] {
            assert_eq!(
                of("grpc-retry-pushback-ms", never),
                Some(Pushback::Never),
                "{never}"
            );
        }
        assert_eq!(pushback(&HeaderMap::new(), Duration::ZERO), None);
    }
}
