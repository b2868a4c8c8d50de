//! Tests of JSON Schemas.

use super::*;

fn show(shape: &StructShape) -> String {
    let field = |(name, kind): &(Box<str>, Kind)| format!("{name}:{}", show_kind(kind));
    let fields: Vec<String> = shape.fields.iter().map(field).collect();
    format!("{{{}{}}}", fields.join(","), if shape.is_closed { "!" } else { "" })
}

fn show_kind(kind: &Kind) -> String {
    match kind {
        Kind::Unknown => "?".to_owned(),
        Kind::Struct(shape) => show(shape),
        Kind::List(list) => format!("[{}]", show_kind(&list.item)),
        Kind::Map(map) => format!("<{}>", show_kind(&map.item)),
        kind => kind.data_type().map_or("-".to_owned(), |data_type| match data_type {
            DataType::Timestamp(..) => "Time".to_owned(),
            other => other.to_string(),
        }),
    }
}

/// Properties, and what follows from them for users and for writers alike.
#[track_caller]
fn check(properties: &str, wanted: &str) {
    let text = format!(r#"{{"type":"object","properties":{properties}}}"#);
    let wanted = format!("{{{wanted}}}");
    assert_eq!(
        of_user(&text, 64).map(|shape| show(&shape)).as_deref(),
        Ok(wanted.as_str()),
        "{properties}"
    );
    assert_eq!(
        of_writer(&text, [], 64).map(|shape| show(&shape)).as_deref(),
        Ok(wanted.as_str()),
        "{properties}"
    );
}

#[test]
fn types_follow_from_keywords() {
    let cases = [
        (
            r#"{"z":{"type":"integer"},"a":{"type":"number"},"b":{"type":"boolean"},"s":{"type":"string"}}"#,
            "z:Int64,a:Float64,b:Boolean,s:Utf8",
        ),
        (
            r#"{"a":{"type":["integer","null"]},"b":{"type":["integer","number"]},"c":{"type":["integer","string"]}}"#,
            "a:Int64,b:Float64,c:Utf8",
        ),
        (r#"{"a":{},"b":true,"c":{"type":"null"},"d":{"description":"open"}}"#, "a:?,b:?,c:?,d:?"),
        (
            r#"{"a":{"type":"string","format":"date-time"},"b":{"type":"string","format":"date"},"c":{"type":"string","format":"uuid"},"d":{"type":"string","format":"time"},"e":{"type":"string","contentEncoding":"base64"}}"#,
            "a:Time,b:Date32,c:Utf8,d:Utf8,e:Binary",
        ),
        (
            r#"{"a":{"enum":["x","y",null]},"b":{"const":"x"},"c":{"enum":[1,2.5]},"d":{"enum":[1,"x"]}}"#,
            "a:Utf8,b:Utf8,c:Float64,d:Utf8",
        ),
        (
            r#"{"a":{"type":"array","items":{"type":"integer"}},"b":{"type":"array"},"c":{"type":"array","items":[{"type":"integer"}]},"d":{"type":"array","prefixItems":[{"type":"integer"}],"items":{"type":"string"}}}"#,
            "a:[Int64],b:[?],c:[?],d:[?]",
        ),
        (
            r#"{"a":{"type":"object","properties":{"b":{"properties":{"c":{"type":"integer"}}}},"additionalProperties":false}}"#,
            "a:{b:{c:Int64}!}",
        ),
        (
            r#"{"a":{"type":"object","additionalProperties":{"type":"integer"}},"b":{"type":"object"},"c":{"type":"object","patternProperties":{"^x":{"type":"string"}},"additionalProperties":false}}"#,
            "a:<Int64>,b:{},c:<Utf8>",
        ),
        (
            r#"{"a":{"anyOf":[{"type":"null"},{"type":"integer"}]},"b":{"oneOf":[{"type":"integer"},{"type":"number"}]},"c":{"oneOf":[{"type":"integer"},{}]}}"#,
            "a:Int64,b:Float64,c:?",
        ),
        (
            r#"{"a":{"oneOf":[{"type":"object","properties":{"x":{"type":"integer"}}},{"type":"object","properties":{"y":{"type":"string"},"x":{"type":"number"}}}]}}"#,
            "a:{x:Float64,y:Utf8}",
        ),
        (
            r#"{"a":{"allOf":[{"properties":{"x":{"type":"integer"}}},{"properties":{"y":{"type":"string"}}}]},"b":{"allOf":[{"type":"number"},{"type":"integer"}]}}"#,
            "a:{x:Int64,y:Utf8},b:Int64",
        ),
    ];
    for (properties, wanted) in cases {
        check(properties, wanted);
    }
}

#[test]
fn references_lead_where_they_should() {
    let text = r##"{"$ref":"#/$defs/order","$defs":{
        "order":{"type":"object","properties":{"lines":{"type":"array","items":{"$ref":"#/$defs/a~1b%20c"}},
            "parent":{"$ref":"#/$defs/order"},"who":{"$ref":"#person"},"other":{"$ref":"person.json#/definitions/name"}}},
        "a/b c":{"type":"object","properties":{"sku":{"type":"string"}}},
        "p":{"$anchor":"person","type":"integer"}}}"##;
    let person = r##"{"$id":"http://x/person.json","definitions":{"name":{"$ref":"#/definitions/text"},"text":{"type":"string"}}}"##;
    let said = of_writer(text, [("person.json", person)], 64).map(|shape| show(&shape));
    assert_eq!(said.as_deref(), Ok("{lines:[{sku:Utf8}],parent:?,who:Int64,other:Utf8}"));
    assert_eq!(
        of_user(text, 64).map(|_| ()),
        Err("it refers to 'person.json#/definitions/name', which is not there".to_owned())
    );
    let beside = r#"{"$id":"http://x/order.json","type":"object","properties":{"who":{"$ref":"person.json#/definitions/name"}}}"#;
    let said = of_writer(beside, [("people", person)], 64).map(|shape| show(&shape));
    assert_eq!(said.as_deref(), Ok("{who:Utf8}"));
}

#[test]
fn what_is_no_schema_of_objects_is_told() {
    let cases = [
        ("{", "no JSON Schema: EOF"),
        ("[]", "no JSON Schema: it has no `type`"),
        (r#"{"a":1}"#, "no JSON Schema: it has no `type`"),
        (r#"{"type":"record","fields":[]}"#, "no JSON Schema: it has no `type`"),
        (r#"{"type":"string"}"#, "it does not say that values are objects"),
        (r#"{"type":"objekt"}"#, "there is no type 'objekt'"),
        (r#"{"properties":[]}"#, "`properties` that is no object"),
        (r#"{"properties":{"a":{"type":5}}}"#, "a `type` that is no name"),
        (r#"{"properties":{"a":5}}"#, "a schema that is neither an object nor a boolean"),
        (r##"{"$ref":"#/$defs/no"}"##, "it refers to '#/$defs/no', which is not there"),
        (r##"{"$ref":"#"}"##, "it does not say that values are objects"),
    ];
    for (text, why) in cases {
        let error = of_user(text, 64).expect_err(text);
        assert!(error.starts_with(why), "{text}: {error}");
    }
    // Each definition uses the next one twice.
    let definitions: Vec<String> = (0..60)
        .map(|at| format!(r##""d{at}":{{"properties":{{"a":{{"$ref":"#/$defs/d{0}"}},"b":{{"$ref":"#/$defs/d{0}"}}}}}}"##, at + 1))
        .collect();
    let text = format!(
        r##"{{"$ref":"#/$defs/d0","$defs":{{{},"d60":{{"type":"integer"}}}}}}"##,
        definitions.join(",")
    );
    assert!(of_user(&text, 64).expect_err("too much").contains("100000 places"));
}

#[test]
fn a_schema_cannot_exhaust_the_stack() {
    let nested = |inner: &str| {
        (0..30).fold(inner.to_owned(), |inner, _| format!(r#"{{"allOf":[{inner}]}}"#))
    };
    let definitions: Vec<String> = (0..500)
        .map(|at| {
            format!(r#""d{at}":{}"#, nested(&format!(r##"{{"$ref":"#/$defs/d{}"}}"##, at + 1)))
        })
        .collect();
    let text = format!(
        r##"{{"$ref":"#/$defs/d0","$defs":{{{},"d500":{{"type":"object"}}}}}}"##,
        definitions.join(",")
    );
    let why = of_writer(&text, [], 64).map(|_| ());
    assert_eq!(why, Err("its parts nest deeper than 256".to_owned()));
    // Values as deep as columns may be, each behind a reference and an alternative.
    let definitions: Vec<String> = (0..70)
        .map(|at| format!(r##""d{at}":{{"properties":{{"a":{{"anyOf":[{{"type":"null"}},{{"$ref":"#/$defs/d{}"}}]}}}}}}"##, at + 1))
        .collect();
    let text = format!(
        r##"{{"$ref":"#/$defs/d0","$defs":{{{},"d70":{{"type":"object"}}}}}}"##,
        definitions.join(",")
    );
    of_writer(&text, [], 64).expect("a schema");
}

#[test]
fn what_is_too_deep_is_text() {
    let text = (0..5).fold(r#"{"type":"integer"}"#.to_owned(), |inner, _| {
        format!(r#"{{"type":"object","properties":{{"a":{inner}}}}}"#)
    });
    assert_eq!(of_user(&text, 2).map(|shape| show(&shape)).as_deref(), Ok("{a:{a:Utf8}}"));
}
