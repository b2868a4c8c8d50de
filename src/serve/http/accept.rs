//! Which form of rows a client accepts (RFC 9110, 12.5.1), and what the forms are called in HTTP.

use std::cmp::Reverse;

use axum::http::{HeaderMap, StatusCode, header};

use super::problem::Problem;
use crate::encode::writer::RowsFormat;

/// The value of `Content-Type`.
pub(super) fn content_type(format: RowsFormat) -> &'static str {
    match format {
        RowsFormat::Csv => "text/csv; charset=utf-8",
        format => media_type(format),
    }
}

fn media_type(format: RowsFormat) -> &'static str {
    match format {
        RowsFormat::Json => "application/json",
        RowsFormat::NdJson => "application/x-ndjson",
        RowsFormat::Csv => "text/csv",
        RowsFormat::Arrow => "application/vnd.apache.arrow.stream",
    }
}

/// How well a range of media types fits: a type fits better than `text/*`, and that better than `*/*`.
type Fit = u8;

/// A range that a client accepts, such as `text/*;q=0.5`.
struct Range<'a> {
    of: &'a str,
    /// Its weight, in thousandths.
    weight: u16,
}

impl<'a> Range<'a> {
    /// `None`, if its weight is none.
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let of = parts.next()?;
        let mut weight = 1.0;
        // Other parameters, such as a charset, do not tell our types apart.
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            if name.eq_ignore_ascii_case("q") {
                weight = value.parse().ok().filter(|q| (0.0..=1.0_f32).contains(q))?;
            }
        }
        Some(Self { of, weight: (weight * 1000.0).round() as u16 })
    }

    fn fit(&self, media_type: &str) -> Option<Fit> {
        let (kind, _) = media_type.split_once('/')?;
        match self.of.split_once('/')? {
            ("*", "*") => Some(0),
            (of, "*") if of.eq_ignore_ascii_case(kind) => Some(1),
            _ if self.of.eq_ignore_ascii_case(media_type) => Some(2),
            _ => None,
        }
    }
}

/// The form that the client likes best: by weight, then the one that is named more exactly, then the one that is named
/// first. JSON, if it does not say.
///
/// # Errors
/// It accepts none of them.
pub(super) fn accepted(headers: &HeaderMap) -> Result<RowsFormat, Problem> {
    let values = headers.get_all(header::ACCEPT);
    let texts: Vec<&str> = values
        .iter()
        .flat_map(|value| value.to_str().unwrap_or("?").split(','))
        .map(str::trim)
        .filter(|text| !text.is_empty())
        .collect();
    if texts.is_empty() {
        return Ok(RowsFormat::Json);
    }
    let ranges: Vec<Range> = texts.into_iter().filter_map(Range::parse).collect();
    let liking = |format: RowsFormat| {
        let fits = ranges.iter().enumerate().filter_map(|(place, range)| {
            range.fit(media_type(format)).map(|fit| (fit, Reverse(place), range.weight))
        });
        // What is said of the type itself counts, whatever is said of all.
        let (fit, place, weight) = fits.max()?;
        (weight > 0).then_some((weight, fit, place))
    };
    let liked = RowsFormat::ALL.into_iter().rev();
    let liked = liked.filter_map(|format| liking(format).map(|liking| (liking, format)));
    // Of equals, which one range stands for, the last one: the first of all.
    match liked.max_by_key(|(liking, _)| *liking) {
        Some((_, format)) => Ok(format),
        None => Err(Problem::new(StatusCode::NOT_ACCEPTABLE, none_accepted())),
    }
}

fn none_accepted() -> String {
    let known = RowsFormat::ALL.map(|format| format!("{} ({})", media_type(format), format.name()));
    format!("rows come in none of the types of Accept, but in {}", known.join(", "))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn of(values: &[&str]) -> Option<RowsFormat> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::ACCEPT, HeaderValue::from_str(value).expect("a value"));
        }
        accepted(&headers).ok()
    }

    #[test]
    fn the_best_of_what_is_accepted() {
        use RowsFormat::*;
        for (values, expected) in [
            (&[][..], Some(Json)),
            (&[""], Some(Json)),
            (&["*/*"], Some(Json)),
            (&["application/*"], Some(Json)),
            (&["text/*"], Some(Csv)),
            (&["TEXT/CSV; charset=utf-8"], Some(Csv)),
            (&["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"], Some(Json)),
            (&["text/html, text/csv;q=0.1"], Some(Csv)),
            (&["text/csv;q=0.5, application/json;q=0.7"], Some(Json)),
            (&["application/json;q=0.7", "text/csv;q=0.8"], Some(Csv)),
            (&["text/csv, application/json"], Some(Csv)),
            (&["*/*, application/x-ndjson"], Some(NdJson)),
            (&["*/*;q=0.9, application/vnd.apache.arrow.stream;q=0.8"], Some(Json)),
            (&["application/*, application/json;q=0.5"], Some(NdJson)),
            (&["application/json;q=0, */*"], Some(NdJson)),
            (&["application/json; q=0"], None),
            (&["*/*;q=0"], None),
            (&["text/html"], None),
            (&["image/*, application/xml"], None),
            (&["text/csv;q=2"], None),
            (&["text/csv;q=nan"], None),
            (&["csv"], None),
        ] {
            assert_eq!(of(values), expected, "{values:?}");
        }
    }

    #[test]
    fn what_there_is_is_said() {
        let why = none_accepted();
        for format in RowsFormat::ALL {
            assert!(why.contains(media_type(format)) && why.contains(format.name()), "{why}");
        }
    }
}
