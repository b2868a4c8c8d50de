//! Looks at one record: what it has to say about the shape of its topic, and whether it keeps to what schemas say.
//!
//! This is the thorough way, for records that did not fit. The others never come here.

use std::collections::HashSet;

use super::super::reject::{Meter, RecordLimits, Reject};
use super::leaf::Token;
use super::scan::{Number, Scanner};
use super::shape::{
    EXACT_MAX, Kind, ListShape, Source, StructShape, column_depth_max, duplicate, name_of,
    not_an_object,
};

/// What one record shows; `known` is what is known of its fields.
///
/// # Errors
/// A bad record.
pub fn look(
    text: &[u8],
    known: Option<&StructShape>,
    limits: &RecordLimits,
) -> Result<StructShape, Reject> {
    let mut scanner = Scanner::new(text);
    let mut seen = StructShape::default();
    let mut learner = Learner {
        meter: Meter::new(limits),
        depth_max: column_depth_max(limits.depth_max),
        unfit: None,
    };
    if scanner.peek() != b'{' {
        return Err(not_an_object(&mut scanner, &mut learner.meter));
    }
    if let Err(reject) = learner.object(&mut scanner, &mut seen, known, 0) {
        return Err(match learner.unfit {
            Some(mut path) => {
                path.reverse();
                let path = path.join(".");
                Reject::value(format!("{}: {}", path.escape_debug(), reject.message))
            }
            None => reject,
        });
    }
    scanner.end()?;
    Ok(seen)
}

/// Looks at the values of one record.
struct Learner {
    meter: Meter,
    depth_max: usize,
    /// The fields around a value that does not fit, the innermost first.
    unfit: Option<Vec<Box<str>>>,
}

impl Learner {
    fn value(
        &mut self,
        scanner: &mut Scanner<'_>,
        kind: &mut Kind,
        known: Option<&Kind>,
        depth: usize,
    ) -> Result<(), Reject> {
        let next = scanner.peek();
        match known {
            Some(Kind::Leaf(leaf)) => {
                let Some(token) = Token::scan(scanner, &mut self.meter)? else { return Ok(()) };
                return match leaf.read(token) {
                    Ok(_) => Ok(()),
                    Err(unfit) if leaf.gives_way(&unfit) => {
                        *kind = Kind::Text;
                        Ok(())
                    }
                    Err(unfit) => Err(self.reject(unfit.why())),
                };
            }
            Some(Kind::Map(map)) if next == b'{' => {
                if matches!(kind, Kind::Unknown) {
                    *kind = Kind::Map(ListShape { item: Box::new(Kind::Unknown), is_firm: false });
                }
                let Kind::Map(seen) = kind else { return self.any(scanner, kind) };
                return self.map(scanner, &mut seen.item, &map.item, depth);
            }
            Some(Kind::Struct(StructShape { is_firm: true, .. }))
            | Some(Kind::Map(ListShape { is_firm: true, .. }))
                if !matches!(next, b'{' | b'n') =>
            {
                return self.misplaced(scanner, "an object");
            }
            Some(Kind::List(ListShape { is_firm: true, .. })) if !matches!(next, b'[' | b'n') => {
                return self.misplaced(scanner, "an array");
            }
            _ => {}
        }
        let seen = match next {
            b'{' if depth < self.depth_max && matches!(kind, Kind::Unknown | Kind::Struct(_)) => {
                if matches!(kind, Kind::Unknown) {
                    *kind = Kind::Struct(StructShape::default());
                }
                let Kind::Struct(shape) = kind else { return Ok(()) };
                let known = match known {
                    Some(Kind::Struct(known)) => Some(known),
                    _ => None,
                };
                return self.object(scanner, shape, known, depth);
            }
            b'[' if depth < self.depth_max && matches!(kind, Kind::Unknown | Kind::List(_)) => {
                if matches!(kind, Kind::Unknown) {
                    *kind = Kind::list_of(Kind::Unknown);
                }
                let Kind::List(list) = kind else { return Ok(()) };
                let known = match known {
                    Some(Kind::List(known)) => Some(&*known.item),
                    _ => None,
                };
                return self.array(scanner, &mut list.item, known, depth);
            }
            b'{' | b'[' => return self.any(scanner, kind),
            b'"' => {
                scanner.string()?;
                Kind::Text
            }
            b't' => {
                scanner.word(b"true")?;
                Kind::Bool
            }
            b'f' => {
                scanner.word(b"false")?;
                Kind::Bool
            }
            b'n' => {
                scanner.word(b"null")?;
                Kind::Unknown
            }
            b'-' | b'0'..=b'9' => match scanner.number()? {
                Number::Int(value) => Kind::Int { wide: value.unsigned_abs() > EXACT_MAX },
                Number::Float(_) => Kind::Float,
                Number::Big(_) => Kind::Text,
            },
            _ => return Err(scanner.unexpected("a value")),
        };
        // Only scalars come here; fields need no room.
        kind.merge(seen, &mut Source { is_schema: false, room: 0 });
        Ok(())
    }

    /// Passes what becomes text as a whole.
    fn any(&mut self, scanner: &mut Scanner<'_>, kind: &mut Kind) -> Result<(), Reject> {
        scanner.skip(&mut self.meter)?;
        kind.merge(Kind::Text, &mut Source { is_schema: false, room: 0 });
        Ok(())
    }

    /// A value that does not fit; the fields around it add their names.
    fn reject(&mut self, why: String) -> Reject {
        self.unfit = Some(Vec::new());
        Reject::value(why)
    }

    fn misplaced(&mut self, scanner: &mut Scanner<'_>, wanted: &str) -> Result<(), Reject> {
        match Token::scan(scanner, &mut self.meter)? {
            None => Ok(()),
            Some(token) => Err(self.reject(format!("{} that should be {wanted}", token.kind()))),
        }
    }

    fn object(
        &mut self,
        scanner: &mut Scanner<'_>,
        shape: &mut StructShape,
        known: Option<&StructShape>,
        depth: usize,
    ) -> Result<(), Reject> {
        self.fields(scanner, |learner, scanner, name| {
            let known = known.and_then(|known| known.field(name));
            match shape.field_mut(name) {
                Some(kind) => learner.value(scanner, kind, known, depth + 1),
                None => Ok(()),
            }
        })
    }

    fn map(
        &mut self,
        scanner: &mut Scanner<'_>,
        value: &mut Kind,
        known: &Kind,
        depth: usize,
    ) -> Result<(), Reject> {
        self.fields(scanner, |learner, scanner, _| {
            learner.value(scanner, value, Some(known), depth + 2)
        })
    }

    /// Passes an object, `each` of whose values is passed by the caller.
    fn fields<'a>(
        &mut self,
        scanner: &mut Scanner<'a>,
        mut each: impl FnMut(&mut Self, &mut Scanner<'a>, &str) -> Result<(), Reject>,
    ) -> Result<(), Reject> {
        scanner.pass();
        let mut names = HashSet::new();
        if scanner.peek() == b'}' {
            scanner.pass();
            return Ok(());
        }
        loop {
            if scanner.peek() != b'"' {
                return Err(scanner.unexpected("an object"));
            }
            let name = name_of(scanner.string()?);
            scanner.expect(b':', "an object")?;
            self.meter.elements(1)?;
            if names.contains(&name) {
                return Err(duplicate(&name));
            }
            if let Err(reject) = each(self, scanner, &name) {
                if let Some(unfit) = &mut self.unfit {
                    unfit.push(name);
                }
                return Err(reject);
            }
            names.insert(name);
            match scanner.peek() {
                b',' => scanner.pass(),
                b'}' => {
                    scanner.pass();
                    return Ok(());
                }
                _ => return Err(scanner.unexpected("an object")),
            }
        }
    }

    fn array(
        &mut self,
        scanner: &mut Scanner<'_>,
        item: &mut Kind,
        known: Option<&Kind>,
        depth: usize,
    ) -> Result<(), Reject> {
        scanner.pass();
        if scanner.peek() == b']' {
            scanner.pass();
            return Ok(());
        }
        loop {
            self.meter.elements(1)?;
            self.value(scanner, item, known, depth + 1)?;
            match scanner.peek() {
                b',' => scanner.pass(),
                b']' => {
                    scanner.pass();
                    return Ok(());
                }
                _ => return Err(scanner.unexpected("an array")),
            }
        }
    }
}
