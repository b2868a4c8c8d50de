//! [`Leaf`]: a place whose type a schema says, and how JSON's values are read as that type.

use arrow::datatypes::{DataType, TimeUnit, i256};
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::super::column::{Bytes, Column, Nulls, Values, pad_offsets, push};
use super::super::reject::{Meter, Reject};
use super::literal::{self, Unfit, shown};
use super::scan::{Number, Scanner, Text};
use super::shape::{EXACT_MAX, name_of};

/// Base64 with or without its padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What is to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    /// Values of this Arrow type, none that nests.
    Arrow(DataType),
    /// Numbers without a fraction.
    Integer,
    /// Numbers, as doubles.
    Number,
    /// Numbers as they were written.
    Digits,
}

/// Who says so, and with that what becomes of other values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// An Arrow schema: they make bad rows.
    Arrow,
    /// A JSON Schema of the user: what it forbids makes a bad row, what it allows and Arrow cannot hold widens the column.
    Schema,
    /// A writer's JSON Schema: the column is widened.
    Writer,
}

/// See the top of this file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// What is to be read.
    pub is: Type,
    /// Who says so.
    pub hold: Hold,
}

/// A value without what it nests.
#[derive(Clone, Copy, Debug)]
pub enum Token<'a> {
    /// A boolean.
    Bool(bool),
    /// A number, and as it was written.
    Number(Number<'a>, &'a [u8]),
    /// A string.
    Text(Text<'a>),
    /// An object.
    Object,
    /// An array.
    Array,
}

/// A value that fits its column.
#[derive(Debug)]
pub enum Read<'a> {
    /// A boolean.
    Bool(bool),
    /// An integer within the range of its type; a time.
    Int(i128),
    /// A number.
    Float32(f32),
    /// A number.
    Float64(f64),
    /// A multiple of the last decimal.
    Decimal(i256),
    /// A string.
    Text(Text<'a>),
    /// As it was written.
    Written(&'a [u8]),
    /// Bytes that were in base64.
    Bytes(Vec<u8>),
}

impl<'a> Token<'a> {
    /// Passes a value; `None` is null.
    ///
    /// # Errors
    /// It is no JSON.
    pub fn scan(scanner: &mut Scanner<'a>, meter: &mut Meter) -> Result<Option<Self>, Reject> {
        Ok(Some(match scanner.peek() {
            b'"' => Self::Text(scanner.string()?),
            b't' => {
                scanner.word(b"true")?;
                Self::Bool(true)
            }
            b'f' => {
                scanner.word(b"false")?;
                Self::Bool(false)
            }
            b'n' => {
                scanner.word(b"null")?;
                return Ok(None);
            }
            next @ (b'{' | b'[') => {
                scanner.skip(meter)?;
                if next == b'{' { Self::Object } else { Self::Array }
            }
            b'-' | b'0'..=b'9' => {
                let start = scanner.at();
                let number = scanner.number()?;
                Self::Number(number, scanner.since(start))
            }
            _ => return Err(scanner.unexpected("a value")),
        }))
    }

    /// What it is.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Bool(_) => "a boolean",
            Self::Number(..) => "a number",
            Self::Text(_) => "a string",
            Self::Object => "an object",
            Self::Array => "an array",
        }
    }
}

impl Leaf {
    /// The type of its column.
    pub fn data_type(&self) -> DataType {
        match &self.is {
            Type::Arrow(data_type) => data_type.clone(),
            Type::Integer => DataType::Int64,
            Type::Number => DataType::Float64,
            Type::Digits => DataType::Utf8,
        }
    }

    /// Whether its column becomes another one for the sake of what does not fit.
    pub fn gives_way(&self, to: &Unfit) -> bool {
        match self.hold {
            Hold::Arrow => false,
            Hold::Schema => matches!(to, Unfit::Beyond(_)),
            Hold::Writer => true,
        }
    }

    /// What it is then; `None`: text of any kind.
    pub fn widened(&self) -> Option<Self> {
        let is = match (self.hold, &self.is) {
            (Hold::Writer, _) => return None,
            (Hold::Arrow, is) => is.clone(),
            (Hold::Schema, Type::Integer | Type::Number | Type::Digits) => Type::Digits,
            (Hold::Schema, Type::Arrow(_)) => Type::Arrow(DataType::Utf8),
        };
        Some(Self { is, hold: self.hold })
    }

    /// Reads a value.
    ///
    /// # Errors
    /// It does not fit.
    pub fn read<'a>(&self, token: Token<'a>) -> Result<Read<'a>, Unfit> {
        let data_type = match (&self.is, token) {
            (Type::Arrow(data_type), _) => data_type,
            (Type::Integer, Token::Number(number, written)) => {
                return integer(number, written, &DataType::Int64);
            }
            (Type::Number, Token::Number(number, written)) => {
                return match number {
                    Number::Float(value) => Ok(Read::Float64(value)),
                    Number::Int(value) if value.unsigned_abs() <= EXACT_MAX => {
                        Ok(Read::Float64(double(value, written.first() == Some(&b'-'))))
                    }
                    _ => Err(beyond(written, &DataType::Float64)),
                };
            }
            (Type::Digits, Token::Number(_, written)) => return Ok(Read::Written(written)),
            (Type::Integer, _) => return Err(wrong(token, "an integer")),
            (Type::Number | Type::Digits, _) => return Err(wrong(token, "a number")),
        };
        match (data_type, token) {
            (DataType::Utf8, Token::Text(text)) => Ok(Read::Text(text)),
            (DataType::Boolean, Token::Bool(value)) => Ok(Read::Bool(value)),
            (DataType::Float64, Token::Number(number, written)) => match number {
                Number::Float(value) => Ok(Read::Float64(value)),
                Number::Int(value) if value as f64 as i128 == i128::from(value) => {
                    Ok(Read::Float64(double(value, written.first() == Some(&b'-'))))
                }
                _ => Err(beyond(written, data_type)),
            },
            (DataType::Float32, Token::Number(number, written)) => float32(number, written),
            (DataType::Decimal128(digits, scale) | DataType::Decimal256(digits, scale), _) => {
                let value = match token {
                    Token::Number(_, written) => literal::decimal(written, *digits, *scale),
                    // Where JSON's numbers would lose digits, decimals are written as strings.
                    Token::Text(text) => literal::decimal(&plain(text), *digits, *scale),
                    _ => Err(wrong(token, "a decimal")),
                };
                value.map(Read::Decimal)
            }
            (DataType::Binary | DataType::FixedSizeBinary(_), Token::Text(text)) => {
                bytes(&plain(text), data_type)
            }
            (DataType::Date32, Token::Text(text)) => {
                literal::date(&plain(text)).map(|days| Read::Int(days.into()))
            }
            (DataType::Time32(unit) | DataType::Time64(unit), Token::Text(text)) => {
                literal::time_of_day(&plain(text), *unit).map(|time| Read::Int(time.into()))
            }
            (DataType::Timestamp(unit, zone), Token::Text(text)) => {
                timestamp(text, *unit, zone.is_some())
            }
            // A number of units, as the column itself counts; JSON Schema has times in strings only.
            (DataType::Timestamp(..), Token::Number(number, written))
                if self.hold == Hold::Arrow =>
            {
                integer(number, written, data_type)
            }
            (DataType::Duration(_), Token::Number(number, written)) => {
                integer(number, written, data_type)
            }
            (other, Token::Number(number, written)) if other.is_integer() => {
                integer(number, written, data_type)
            }
            _ => Err(wrong(token, &format!("of type {data_type}"))),
        }
    }
}

/// The microseconds of a time that karrow.toml says to be one.
///
/// # Errors
/// It is none, or finer.
#[inline(never)]
pub fn micros(text: Text<'_>) -> Result<i64, Reject> {
    literal::timestamp(&plain(text), TimeUnit::Microsecond, true)
        .map_err(|unfit| Reject::value(unfit.why()))
}

fn timestamp(text: Text<'_>, unit: TimeUnit, is_zoned: bool) -> Result<Read<'_>, Unfit> {
    literal::timestamp(&plain(text), unit, is_zoned).map(|time| Read::Int(time.into()))
}

/// An integer that a double holds exactly. Integers have no zero below zero, doubles do.
pub fn double(value: i64, is_negative: bool) -> f64 {
    if value == 0 && is_negative { -0.0 } else { value as f64 }
}

/// A string without escapes.
fn plain(text: Text<'_>) -> std::borrow::Cow<'_, [u8]> {
    match text {
        Text::Plain(content) => content.into(),
        Text::Escaped(_) => name_of(text).into_string().into_bytes().into(),
    }
}

#[cold]
fn wrong(token: Token<'_>, wanted: &str) -> Unfit {
    Unfit::Wrong(format!("{} that should be {wanted}", token.kind()))
}

#[cold]
fn beyond(written: &[u8], data_type: &DataType) -> Unfit {
    Unfit::Beyond(format!("{} is beyond {data_type}", shown(written)))
}

fn integer<'a>(
    number: Number<'_>,
    written: &[u8],
    data_type: &DataType,
) -> Result<Read<'a>, Unfit> {
    let value = match number {
        Number::Int(value) => i128::from(value),
        Number::Float(_) | Number::Big(_) => literal::integer(written)?,
    };
    let fits = match data_type {
        DataType::Int8 => i8::try_from(value).is_ok(),
        DataType::Int16 => i16::try_from(value).is_ok(),
        DataType::Int32 => i32::try_from(value).is_ok(),
        DataType::UInt8 => u8::try_from(value).is_ok(),
        DataType::UInt16 => u16::try_from(value).is_ok(),
        DataType::UInt32 => u32::try_from(value).is_ok(),
        DataType::UInt64 => u64::try_from(value).is_ok(),
        _ => i64::try_from(value).is_ok(),
    };
    if fits { Ok(Read::Int(value)) } else { Err(beyond(written, data_type)) }
}

fn float32<'a>(number: Number<'_>, written: &[u8]) -> Result<Read<'a>, Unfit> {
    let value: f32 =
        std::str::from_utf8(written).ok().and_then(|text| text.parse().ok()).unwrap_or(f32::NAN);
    let fits = match number {
        Number::Int(exact) => value as f64 as i128 == i128::from(exact),
        // A number that is not 0 must not become it.
        Number::Float(exact) => value.is_finite() && (value != 0.0 || exact == 0.0),
        Number::Big(_) => false,
    };
    if fits { Ok(Read::Float32(value)) } else { Err(beyond(written, &DataType::Float32)) }
}

fn bytes<'a>(text: &[u8], data_type: &DataType) -> Result<Read<'a>, Unfit> {
    let wrong = |why: &str| Unfit::Wrong(format!("{} {why}", shown(text)));
    let bytes = BASE64.decode(text).map_err(|_| wrong("is no base64"))?;
    match data_type {
        DataType::FixedSizeBinary(size) if usize::try_from(*size) != Ok(bytes.len()) => {
            Err(wrong(&format!("has {} bytes, not {size}", bytes.len())))
        }
        _ => Ok(Read::Bytes(bytes)),
    }
}

impl Read<'_> {
    /// Appends the value as `row` of `column`, which has the type it was read for.
    ///
    /// # Errors
    /// The column is full.
    pub fn append_to(self, column: &mut Column, row: usize) -> Result<(), Reject> {
        let Column { nulls, values, .. } = column;
        let misplaced = || Reject::value("a value of another type than its column");
        match (self, values) {
            (Self::Bool(value), Values::Bool(values)) => {
                push(values, nulls, row, value);
            }
            (Self::Int(value), Values::Int64(values)) => {
                push(values, nulls, row, i64::try_from(value).map_err(|_| misplaced())?);
            }
            (Self::Int(value), Values::Int32(values)) => {
                push(values, nulls, row, i32::try_from(value).map_err(|_| misplaced())?);
            }
            (Self::Int(value), Values::UInt32(values)) => {
                push(values, nulls, row, u32::try_from(value).map_err(|_| misplaced())?);
            }
            (Self::Int(value), Values::UInt64(values)) => {
                push(values, nulls, row, u64::try_from(value).map_err(|_| misplaced())?);
            }
            (Self::Float32(value), Values::Float32(values)) => {
                push(values, nulls, row, value);
            }
            (Self::Float64(value), Values::Float64(values)) => {
                push(values, nulls, row, value);
            }
            (Self::Decimal(value), Values::Decimal128(values)) => {
                push(values, nulls, row, value.to_i128().ok_or_else(misplaced)?);
            }
            (Self::Decimal(value), Values::Decimal256(values)) => {
                push(values, nulls, row, value);
            }
            (Self::Text(text), Values::Bytes(bytes)) => {
                pad_offsets(&mut bytes.offsets, nulls, row);
                text.append_to(&mut bytes.data);
                bytes.end_row()?;
            }
            (Self::Written(text), Values::Bytes(bytes)) => push_bytes(bytes, nulls, row, text)?,
            (Self::Bytes(content), Values::Bytes(bytes)) => {
                push_bytes(bytes, nulls, row, &content)?
            }
            (Self::Bytes(content), Values::Fixed { .. }) => {
                column.pad_to(row);
                if let Values::Fixed { data, .. } = &mut column.values {
                    data.extend_from_slice(&content);
                }
            }
            _ => return Err(misplaced()),
        }
        Ok(())
    }
}

fn push_bytes(
    bytes: &mut Bytes,
    nulls: &mut Nulls,
    row: usize,
    content: &[u8],
) -> Result<(), Reject> {
    pad_offsets(&mut bytes.offsets, nulls, row);
    bytes.push(content)
}
