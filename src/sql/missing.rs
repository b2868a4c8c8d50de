//! What is said of a table that is not there: names that are near, and whether it is a topic that is no stream.

use crate::error::Error;

/// Names that are shown.
const NAMES_MAX: usize = 3;

/// How much of a name may differ, in characters: a third of it.
const DIFFERENT_PART: usize = 3;

/// The table that is not there, if that is what is wrong.
pub fn missing_table(error: &Error) -> Option<&str> {
    let rest = error.message().strip_prefix("Catalog Error: Table with name ")?;
    // A name with dots in it is taken for one of a schema, and quoted.
    rest.split_once(" does not exist").map(|(name, _)| name.trim_matches('"'))
}

/// The error, with what is known of the name in the place of what DuckDB suggests, which are tables of its own as well.
pub fn said_of_missing(error: &Error, missing: &str, names: &[String], is_topic: bool) -> Error {
    let (head, place) = match error.message().split_once("\n\nLINE ") {
        Some((head, place)) => (head, format!("\n\nLINE {place}")),
        None => (error.message(), String::new()),
    };
    let first = head.lines().next().unwrap_or_default();
    let hint = if first.contains("because schema \"stored\" does not exist") {
        "\nTopics are not stored here: see --persist".to_owned()
    } else if let Some(name) = names.iter().find(|name| name.eq_ignore_ascii_case(missing)) {
        format!("\nIt needs double quotes: \"{name}\"")
    } else if is_topic {
        format!(
            "\n'{missing}' is a topic, and no stream yet: see --topics, or `karrow client actions add-stream {missing}`"
        )
    } else if names.is_empty() {
        "\nTables are the topics that are streams, of which there are none: see --topics".to_owned()
    } else {
        match near(missing, names).as_slice() {
            [] => String::new(),
            near => format!("\nDid you mean {}?", near.join(" or ")),
        }
    };
    Error::new(error.kind(), format!("{first}{hint}{place}"))
}

/// The names that are most like it, nearest first, in quotes.
fn near(missing: &str, names: &[String]) -> Vec<String> {
    let missing = missing.to_lowercase();
    let distance = |name: &String| {
        let name = name.to_lowercase();
        let length = missing.chars().count().max(name.chars().count());
        let distance = strsim::damerau_levenshtein(&missing, &name);
        let is_near = distance <= length.div_ceil(DIFFERENT_PART)
            || (missing.len() > 1 && name.starts_with(&missing));
        is_near.then_some(distance)
    };
    let mut near: Vec<(usize, &String)> =
        names.iter().filter_map(|name| Some((distance(name)?, name))).collect();
    near.sort();
    near.into_iter().take(NAMES_MAX).map(|(_, name)| format!("\"{name}\"")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_table_that_is_not_there_is_explained() {
        let said = "Catalog Error: Table with name ordrs does not exist! (line 1, column 6)\n\
                    Did you mean \"pg_attrdef\"?\n\nLINE 1: from ordrs\n             ^";
        let error = Error::invalid(said);
        assert_eq!(missing_table(&error), Some("ordrs"));
        let orders = ["orders", "Orders_1", "clicks", "ordering"].map(str::to_owned);
        let head = "Catalog Error: Table with name ordrs does not exist! (line 1, column 6)";
        let tail = "\n\nLINE 1: from ordrs\n             ^";
        for (names, is_topic, hint) in [
            (orders.as_slice(), false, "\nDid you mean \"orders\" or \"Orders_1\"?"),
            (
                orders.as_slice(),
                true,
                "\n'ordrs' is a topic, and no stream yet: see --topics, or `karrow client actions add-stream ordrs`",
            ),
            (
                &[],
                false,
                "\nTables are the topics that are streams, of which there are none: see --topics",
            ),
            (&["clicks".to_owned()], false, ""),
        ] {
            let error = said_of_missing(&error, "ordrs", names, is_topic);
            assert_eq!(error.message(), format!("{head}{hint}{tail}"));
            assert_eq!(error.kind(), ErrorKind::Invalid);
        }
        let dotted = Error::invalid(
            "Catalog Error: Table with name \"a.b\" does not exist because schema \"a\" does not exist.",
        );
        let names = ["a.b".to_owned()];
        let error =
            said_of_missing(&dotted, missing_table(&dotted).expect("a table"), &names, true);
        assert!(error.message().ends_with("\nIt needs double quotes: \"a.b\""), "{error}");
        let stored = "Catalog Error: Table with name \"stored.x\" does not exist because schema \"stored\" does not exist.";
        let error = Error::invalid(stored);
        let name = missing_table(&error).expect("a table");
        let error = said_of_missing(&error, name, &[], false);
        assert_eq!(error.message(), format!("{stored}\nTopics are not stored here: see --persist"));
        assert_eq!(near("ord", &orders), ["\"orders\"", "\"Orders_1\"", "\"ordering\""]);
        assert_eq!(missing_table(&Error::invalid("Binder Error: x")), None);
    }
}
