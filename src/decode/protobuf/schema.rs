//! The text of a `.proto` file into descriptors, without a file system: imports are the schema's references, or files
//! that every Protobuf compiler knows.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};

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

/// What imports are looked up in.
struct Imports {
    text: String,
    references: Vec<Reference>,
    google: GoogleFileResolver,
}

impl FileResolver for Imports {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        if name == MAIN {
            return File::from_source(name, &self.text);
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
            Some(text) => File::from_source(name, text),
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
    /// Compiles the file `text`, which errors call `label`.
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

    #[test]
    fn bad_texts_are_named() {
        let deep = "message A {".repeat(1000);
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
            ("CgpzY2hlbWE=", &[], "expected"),
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
