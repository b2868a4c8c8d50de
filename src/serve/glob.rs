//! Redis's patterns, for topics in all edges.

/// Redis's globs: `*`, `?`, `[a-z]`, `[^a]` and `\`.
pub fn matches(pattern: &[u8], key: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    // Where the last star is, and how much of the key it has eaten.
    let mut star: Option<(usize, usize)> = None;
    loop {
        let step = match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
                continue;
            }
            None if from == key.len() => return true,
            None => None,
            Some(_) => key.get(from).and_then(|byte| one(&pattern[at..], *byte)),
        };
        match (step, &mut star) {
            (Some(len), _) => {
                at += len;
                from += 1;
            }
            (None, Some((place, eaten))) if *eaten < key.len() => {
                *eaten += 1;
                (at, from) = (*place + 1, *eaten);
            }
            (None, _) => return false,
        }
    }
}

/// Whether the first element of `pattern` takes `byte`, and how long that element is.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [b'[', class @ ..] => {
            let end = class.iter().position(|byte| *byte == b']')?;
            let class = &class[..end];
            let (negated, class) = match class {
                [b'^', rest @ ..] => (true, rest),
                class => (false, class),
            };
            let mut found = false;
            let mut rest = class;
            while let Some((&first, after)) = rest.split_first() {
                rest = after;
                match rest {
                    [b'-', last, behind @ ..] => {
                        found |= (first.min(*last)..=first.max(*last)).contains(&byte);
                        rest = behind;
                    }
                    _ => found |= first == byte,
                }
            }
            (found != negated).then_some(end + 2)
        }
        [literal, ..] => (*literal == byte).then_some(1),
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_are_rediss() {
        for (pattern, key, expect) in [
            ("*", "", true),
            ("topics:*", "topics:a", true),
            ("topics:?", "topics:ab", false),
            ("*a*b", "xaxxb", true),
            ("*a*b", "xaxxbc", false),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("[c-a]x", "bx", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("[", "[", false),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), key.as_bytes()), expect, "{pattern} {key}");
        }
        let stars = "*a".repeat(30);
        assert!(!matches(stars.as_bytes(), "a".repeat(29).as_bytes()));
    }

    proptest::proptest! {
        #[test]
        fn no_pattern_makes_it_panic(pattern in "[*?\\[\\]^\\-a\\\\]{0,12}", key in "[a\\-]{0,12}") {
            let _ = matches(pattern.as_bytes(), key.as_bytes());
        }
    }
}
