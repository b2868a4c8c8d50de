//! A `.proto` file into descriptors, without a file system: imports are the schema's references, or files that every
//! Protobuf compiler knows.
//!
//! Registries hold a file as its text or, from serializers that know nothing but what was compiled into their program
//! (Confluent's for Python), as its serialized `FileDescriptorProto` in base64. Each reference may be either.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use prost_reflect::prost_types::FileDescriptorProto;
use prost_reflect::{FileDescriptor, MessageDescriptor};
use protox::file::{File, FileResolver, GoogleFileResolver};

use crate::decode::reject::Reject;
use crate::decode::schemas::Reference;

/// Bytes of a schema with all its references. Registries refuse far smaller ones.
const TEXT_BYTES_MAX: usize = 8 << 20;

/// What the schema itself is called among its imports: no path that one would import.
const MAIN: &str = ".schema";

/// References of a schema; each can be one level of imports.
const REFERENCES_MAX: usize = 1_000;

/// Files that Confluent's serializers do not register as references, because their deserializers know them.
const BUILT_IN: [(&str, &str); 10] = [
    ("confluent/meta.proto", include_str!("known/confluent_meta.proto")),
    ("confluent/type/decimal.proto", include_str!("known/confluent_decimal.proto")),
    ("google/type/calendar_period.proto", include_str!("known/calendar_period.proto")),
    ("google/type/color.proto", include_str!("known/color.proto")),
    ("google/type/date.proto", include_str!("known/date.proto")),
    ("google/type/dayofweek.proto", include_str!("known/dayofweek.proto")),
    ("google/type/latlng.proto", include_str!("known/latlng.proto")),
    ("google/type/money.proto", include_str!("known/money.proto")),
    ("google/type/month.proto", include_str!("known/month.proto")),
    ("google/type/timeofday.proto", include_str!("known/timeofday.proto")),
];

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The file `name`, whose text is a .proto's or a descriptor in base64.
fn file_of(name: &str, text: &str) -> Result<File, protox::Error> {
    let Some(bytes) = from_base64(text) else { return File::from_source(name, text) };
    let file = File::decode_file_descriptor_proto(bytes.as_slice()).map_err(|error| {
        protox::Error::new(format!("what its base64 holds is no FileDescriptorProto: {error}"))
    })?;
    // It has the name that it was compiled under, which need not be what it is imported by.
    let named = FileDescriptorProto { name: Some(name.to_owned()), ..file.into() };
    Ok(File::from_file_descriptor_proto(named))
}

/// What `text` holds if it is base64. A .proto is not: each of its statements has a character that base64 lacks.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    let compact: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    if compact.is_empty() {
        return None;
    }
    BASE64.decode(compact).ok()
}

/// What imports are looked up in.
struct Imports {
    text: String,
    references: Vec<Reference>,
    google: GoogleFileResolver,
}

impl FileResolver for Imports {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        if name == MAIN {
            return file_of(name, &self.text);
        }
        // Some registries hold copies of them; the types' meaning is bound to the originals.
        if let Ok(file) = self.google.open_file(name) {
            return Ok(file);
        }
        let reference = self.references.iter().find(|reference| reference.name == name);
        let text = match reference {
            Some(reference) => Some(reference.text.as_str()),
            None => BUILT_IN.iter().find(|(known, _)| *known == name).map(|(_, text)| *text),
        };
        match text {
            Some(text) => file_of(name, text),
            None => Err(protox::Error::file_not_found(name)),
        }
    }
}

/// A compiled file with what it imports.
#[derive(Clone, Debug)]
pub struct Schema {
    label: String,
    file: FileDescriptor,
}

impl Schema {
    /// Compiles the file `text`, a .proto or its descriptor in base64, which errors call `label`.
    ///
    /// # Errors
    /// It is not valid, too long, or imports what is not there.
    pub fn compile(label: &str, text: &str, references: &[Reference]) -> Result<Self, Reject> {
        let unusable = |why: &dyn Display| Reject::schema(format!("{label} cannot be used: {why}"));
        let bytes = references.iter().fold(text.len(), |sum, reference| sum + reference.text.len());
        if bytes > TEXT_BYTES_MAX {
            return Err(unusable(&format_args!("more than {} MiB of text", TEXT_BYTES_MAX >> 20)));
        }
        if references.len() > REFERENCES_MAX {
            return Err(unusable(&format_args!("more than {REFERENCES_MAX} references")));
        }
        let imports = Imports {
            text: text.to_owned(),
            references: references.to_vec(),
            google: GoogleFileResolver::new(),
        };
        let compiled = catch_unwind(AssertUnwindSafe(|| {
            let mut compiler = protox::Compiler::with_file_resolver(imports);
            compiler.open_file(MAIN)?;
            Ok::<_, protox::Error>(compiler.descriptor_pool().get_file_by_name(MAIN))
        }));
        match compiled {
            Ok(Ok(Some(file))) => Ok(Self { label: label.to_owned(), file }),
            Ok(Err(error)) => Err(match error.file() {
                Some(file) if file != MAIN => unusable(&format_args!("in {file}: {error}")),
                _ => unusable(&error),
            }),
            // The compiler's own mistake; no text should make it.
            Ok(Ok(None)) | Err(_) => Err(unusable(&"the Protobuf compiler failed")),
        }
    }

    /// The message at `indexes`: that of the outermost one in the file, then inside of that, and so on.
    ///
    /// # Errors
    /// There is none.
    pub fn message_at(&self, indexes: &[u32]) -> Result<MessageDescriptor, Reject> {
        let none =
            || Reject::schema(format!("{} has no message at the indexes {indexes:?}", self.label));
        let (first, inner) = indexes.split_first().ok_or_else(none)?;
        let nth = |index: &u32| usize::try_from(*index).unwrap_or(usize::MAX);
        let mut message = self.file.messages().nth(nth(first)).ok_or_else(none)?;
        for index in inner {
            let child = message.child_messages().nth(nth(index)).ok_or_else(none)?;
            message = child;
        }
        Ok(message)
    }

    /// The message of this full name, in the file or what it imports.
    ///
    /// # Errors
    /// There is none.
    pub fn message_named(&self, full_name: &str) -> Result<MessageDescriptor, Reject> {
        self.file.parent_pool().get_message_by_name(full_name).ok_or_else(|| {
            let there: Vec<String> =
                self.file.messages().take(20).map(|it| it.full_name().to_owned()).collect();
            let there = there.join(", ");
            Reject::schema(format!("{} has no message {full_name}; it has {there}", self.label))
        })
    }

    /// What errors call it.
    pub fn label(&self) -> &str {
        &self.label
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    fn reference(name: &str, text: &str) -> Reference {
        Reference { name: name.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn messages_are_found_by_their_indexes_and_names() {
        let text = r#"
            syntax = "proto3";
            package shop;
            import "google/protobuf/timestamp.proto";
            import "who/person.proto";
            message A { message B {} message C { message D { int32 x = 1; } } }
            message E { who.Person who = 1; google.protobuf.Timestamp at = 2; map<string, int32> m = 3; }
        "#;
        let references = [
            reference(
                "who/name.proto",
                "syntax = 'proto3'; package who; message Name { string x = 1; }",
            ),
            reference(
                "who/person.proto",
                "syntax = 'proto3'; package who; import 'who/name.proto'; message Person { Name name = 1; }",
            ),
        ];
        let schema = Schema::compile("schema 7", text, &references).expect("compiles");
        for (indexes, name) in [
            (&[0][..], "shop.A"),
            (&[1], "shop.E"),
            (&[0, 0], "shop.A.B"),
            (&[0, 1, 0], "shop.A.C.D"),
        ] {
            assert_eq!(schema.message_at(indexes).expect("a message").full_name(), name);
        }
        for indexes in [&[][..], &[2], &[0, 2], &[u32::MAX], &[0, 1, 0, 0]] {
            let reject = schema.message_at(indexes).expect_err("none");
            assert!(reject.message.starts_with("schema 7 has no message at"), "{reject}");
        }
        assert_eq!(schema.message_named("who.Person").expect("a message").name(), "Person");
        let reject = schema.message_named("shop.F").expect_err("none");
        assert_eq!(reject.message, "schema 7 has no message shop.F; it has shop.A, shop.E");
    }

    /// As Google's compiler describes a file: with full names of types, and no text left.
    fn descriptor(name: &str, text: &str, files: &[(&str, &str)]) -> String {
        struct Files(Vec<(String, String)>);
        impl FileResolver for Files {
            fn open_file(&self, name: &str) -> Result<File, protox::Error> {
                match self.0.iter().find(|(known, _)| known == name) {
                    Some((_, text)) => File::from_source(name, text),
                    None => GoogleFileResolver::new().open_file(name),
                }
            }
        }
        let mut all = vec![(name.to_owned(), text.to_owned())];
        all.extend(files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())));
        let mut compiler = protox::Compiler::with_file_resolver(Files(all));
        let set = compiler.open_file(name).expect("compiles").file_descriptor_set();
        base64::prelude::BASE64_STANDARD.encode(set.file[0].encode_to_vec())
    }

    #[test]
    fn descriptors_in_base64_are_files_too() {
        let name = "syntax = 'proto3'; package who; message Name { string x = 1; }";
        let person = "syntax = 'proto3'; package who; import 'who/name.proto';
            message Person { Name name = 1; map<string, Name> others = 2; optional int32 age = 3; }";
        let text = "syntax = 'proto3'; package shop;
            import 'google/protobuf/timestamp.proto'; import 'google/type/date.proto';
            import 'who/person.proto';
            message A { message B { int32 yes = 1; } }
            message E { who.Person who = 1; google.protobuf.Timestamp at = 2; oneof o { int32 x = 3; Kind k = 4; } }
            enum Kind { NONE = 0; SOME = 1; }";
        let dates = ("google/type/date.proto", include_str!("known/date.proto"));
        let files = [("who/name.proto", name), ("who/person.proto", person), dates];
        let encoded = descriptor("made/elsewhere.proto", text, &files);
        let wrapped = encoded
            .as_bytes()
            .chunks(76)
            .map(|line| format!("{}\r\n", String::from_utf8_lossy(line)))
            .collect::<String>();
        let bare = encoded.trim_end_matches('=').to_owned();
        let person_encoded = descriptor("who/person.proto", person, &files[..1]);
        for (main, person) in [
            (encoded.as_str(), person_encoded.as_str()),
            (&wrapped, person),
            (&bare, &person_encoded),
            (text, &person_encoded),
        ] {
            let references = [
                reference("who/name.proto", &descriptor("n.proto", name, &[])),
                reference("who/person.proto", person),
            ];
            let schema = Schema::compile("schema 7", main, &references).expect("compiles");
            assert_eq!(schema.message_at(&[0, 0]).expect("a message").full_name(), "shop.A.B");
            let message = schema.message_at(&[1]).expect("a message");
            let names: Vec<String> = message.fields().map(|it| it.name().to_owned()).collect();
            assert_eq!(names, ["who", "at", "x", "k"]);
            let person = schema.message_named("who.Person").expect("a message");
            assert!(person.get_field_by_name("others").expect("a map").is_map());
            assert!(person.get_field_by_name("age").expect("a number").supports_presence());
        }
        let reject = Schema::compile("schema 7", &encoded, &[]).expect_err("no references");
        assert_eq!(reject.message, "schema 7 cannot be used: import 'who/person.proto' not found");
    }

    /// A descriptor of messages inside of messages.
    fn nested_in_base64(depth: usize) -> String {
        use prost_reflect::prost_types::DescriptorProto;
        let mut inner = DescriptorProto { name: Some("A".into()), ..DescriptorProto::default() };
        for _ in 0..depth {
            inner = DescriptorProto {
                name: Some("A".into()),
                nested_type: vec![inner],
                ..DescriptorProto::default()
            };
        }
        let file = FileDescriptorProto { message_type: vec![inner], ..Default::default() };
        base64::prelude::BASE64_STANDARD.encode(file.encode_to_vec())
    }

    #[test]
    fn bad_texts_are_named() {
        let deep = "message A {".repeat(1000);
        let deep_in_base64 = nested_in_base64(1000);
        let unreadable = [reference("a.proto", "CgpzY2hlbWE=")];
        let cases = [
            ("", &[][..], ""),
            ("message {", &[], "schema 7 cannot be used: expected"),
            (deep.as_str(), &[], "nested"),
            ("syntax = 'proto3'; import 'gone.proto';", &[], "gone.proto"),
            (
                "syntax = 'proto3'; import 'a.proto';",
                &[reference("a.proto", "syntax = 'proto3'; message A { B b = 1; }")],
                "in a.proto: name 'B' is not defined",
            ),
            (
                "syntax = 'proto3'; import 'a.proto';",
                &[reference("a.proto", "import 'a.proto';")],
                "cycle",
            ),
            ("{\"type\": \"record\"}", &[], "expected"),
            ("CgpzY2hlbWE=", &[], "no FileDescriptorProto"),
            ("syntax = 'proto3'; import 'a.proto';", &unreadable, "no FileDescriptorProto"),
            (deep_in_base64.as_str(), &[], "no FileDescriptorProto"),
            ("syntax = 'proto3'; message A { int32 a = 1; int32 b = 1; }", &[], "already"),
        ];
        for (text, references, wanted) in cases {
            match Schema::compile("schema 7", text, references) {
                Ok(_) => assert_eq!(wanted, "", "{text}"),
                Err(reject) => {
                    assert!(!wanted.is_empty() && reject.message.contains(wanted), "{reject}");
                }
            }
        }
        // Text that is neither, and long: what is said of it is not.
        for text in ["x".repeat(100_001), format!("{};", "x".repeat(100_000))] {
            let reject = Schema::compile("schema 7", &text, &[]).expect_err("neither");
            assert!(reject.message.starts_with("schema 7 cannot be used: "), "{reject}");
            assert!(reject.message.chars().count() < 600, "{}", reject.message.len());
        }
        let long = " ".repeat(TEXT_BYTES_MAX + 1);
        assert!(
            Schema::compile("schema 7", &long, &[]).expect_err("long").message.contains("8 MiB")
        );
    }

    #[test]
    fn all_built_in_files_compile() {
        for (name, _) in BUILT_IN {
            Schema::compile("it", &format!("syntax = 'proto3'; import '{name}';"), &[])
                .expect(name);
        }
    }
}
