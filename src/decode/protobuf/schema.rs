//! A `.proto` file into descriptors. What it imports are the references of the registry's schema, or for a file of the
//! user's those that lie beside it; and files that every Protobuf compiler knows.
//!
//! Registries hold a file as its text or, from serializers that know nothing but what was compiled into their program
//! (Confluent's for Python), as its serialized `FileDescriptorProto` in base64. Each reference may be either.

use std::fmt::Display;
use std::fs;
use std::io::{ErrorKind, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Component, Path, PathBuf};

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

/// What a registry's schema is called among its imports: no path that one would import.
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
    let Some(bytes) = from_base64(text) else {
        return File::from_source(name, text).map_err(|error| match crooked_import(text) {
            // The parser calls that an invalid group name.
            Some(import) if error.is_parse() && error.to_string().contains("group name") => {
                no_path(import)
            }
            _ => error,
        });
    };
    let file = File::decode_file_descriptor_proto(bytes.as_slice()).map_err(|error| {
        protox::Error::new(format!("what its base64 holds is no FileDescriptorProto: {error}"))
    })?;
    // It has the name that it was compiled under, which need not be what it is imported by.
    let named = FileDescriptorProto { name: Some(name.to_owned()), ..file.into() };
    Ok(File::from_file_descriptor_proto(named))
}

/// The first import of `text` that no compiler takes.
fn crooked_import(text: &str) -> Option<&str> {
    let imports = text.split("import").skip(1).filter_map(|rest| {
        let rest = rest.trim_start().trim_start_matches("public").trim_start_matches("weak");
        let quoted = rest.trim_start();
        let quote = quoted.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
        quoted.get(1..)?.split(quote).next()
    });
    imports.into_iter().find(|import| !is_plain(import))
}

/// Whether an import leads nowhere but down.
fn is_plain(import: &str) -> bool {
    !import.contains('\\') && import.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

fn no_path(import: &str) -> protox::Error {
    protox::Error::new(format!(
        "import '{import}' is no plain path: it may not begin with '/' or have '.', '..' or '\\' in it"
    ))
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
    /// What the file itself is called among them.
    main: String,
    text: String,
    references: Vec<Reference>,
    /// Where else they may lie.
    folder: Option<PathBuf>,
    google: GoogleFileResolver,
}

impl FileResolver for Imports {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        if name == self.main {
            return file_of(name, &self.text);
        }
        // Some registries hold copies of them; the types' meaning is bound to the originals.
        if let Ok(file) = self.google.open_file(name) {
            return Ok(file);
        }
        if let Some(reference) = self.references.iter().find(|reference| reference.name == name) {
            return file_of(name, &reference.text);
        }
        if let Some(text) =
            self.folder.as_deref().and_then(|folder| beside(folder, name).transpose())
        {
            return file_of(name, &text?);
        }
        match BUILT_IN.iter().find(|(known, _)| *known == name) {
            Some((_, text)) => File::from_source(name, text),
            None => Err(protox::Error::file_not_found(name)),
        }
    }
}

/// The text of the file that is imported as `name`, if it lies in `folder` or below. (Links in there lead where their
/// owner wants them to; an import must not lead out by itself.)
fn beside(folder: &Path, name: &str) -> Result<Option<String>, protox::Error> {
    if !is_plain(name) || !Path::new(name).components().all(|it| matches!(it, Component::Normal(_)))
    {
        return Err(no_path(name));
    }
    let path = folder.join(name);
    let mut text = String::new();
    let read = fs::File::open(&path)
        .and_then(|file| file.take(TEXT_BYTES_MAX as u64 + 1).read_to_string(&mut text));
    match read {
        Ok(bytes) if bytes > TEXT_BYTES_MAX => Err(protox::Error::new(format!(
            "import '{name}': {} has more than {} MiB",
            path.display(),
            TEXT_BYTES_MAX >> 20
        ))),
        Ok(_) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(protox::Error::new(format!(
            "import '{name}': cannot read {}: {error}",
            path.display()
        ))),
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
        Self::with(
            label,
            Imports {
                main: MAIN.to_owned(),
                text: text.to_owned(),
                references: references.to_vec(),
                folder: None,
                google: GoogleFileResolver::new(),
            },
        )
    }

    /// Compiles `text`, which is that of the file `path`. It may import what lies in the directory of that file or
    /// below, by its path from there; nothing else is read.
    ///
    /// # Errors
    /// It is not valid, too long, or imports what is not there.
    pub fn of_file(path: &Path, text: &str) -> Result<Self, Reject> {
        let main = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let folder = path.parent().map(Path::to_path_buf);
        let (text, references) = (text.to_owned(), Vec::new());
        let google = GoogleFileResolver::new();
        Self::with(&main.clone(), Imports { main, text, references, folder, google })
    }

    fn with(label: &str, imports: Imports) -> Result<Self, Reject> {
        let unusable = |why: &dyn Display| Reject::schema(format!("{label} cannot be used: {why}"));
        let references = imports.references.iter().map(|reference| reference.text.len());
        if imports.text.len() + references.sum::<usize>() > TEXT_BYTES_MAX {
            return Err(unusable(&format_args!("more than {} MiB of text", TEXT_BYTES_MAX >> 20)));
        }
        if imports.references.len() > REFERENCES_MAX {
            return Err(unusable(&format_args!("more than {REFERENCES_MAX} references")));
        }
        let main = imports.main.clone();
        let compiled = catch_unwind(AssertUnwindSafe(|| {
            let mut compiler = protox::Compiler::with_file_resolver(imports);
            compiler.open_file(&main)?;
            Ok::<_, protox::Error>(compiler.descriptor_pool().get_file_by_name(&main))
        }));
        match compiled {
            Ok(Ok(Some(file))) => Ok(Self { label: label.to_owned(), file }),
            Ok(Err(error)) => Err(match error.file() {
                Some(file) if file != main => unusable(&format_args!("in {file}: {error}")),
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
    fn files_import_what_lies_beside_them() {
        let root = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().expect("a directory")).expect("made");
            fs::write(&path, format!("syntax = 'proto3'; {text}")).expect("written");
            path
        };
        let compile = |path: &Path| {
            let text = fs::read_to_string(path).expect("read");
            Schema::of_file(path, &text).map_err(|reject| reject.message)
        };
        write("all/name.proto", "message Name { string x = 1; }");
        write("all/who/person.proto", "import 'name.proto'; message Person { Name name = 1; }");
        // Built in, unless there is one of that name.
        write("all/google/type/date.proto", "package google.type; message Date { int32 own = 1; }");
        let good = write(
            "all/order.proto",
            "import 'who/person.proto'; import 'google/type/date.proto'; import 'google/type/money.proto';
             import 'google/protobuf/timestamp.proto';
             message Order { Person who = 1; google.type.Date on = 2; google.protobuf.Timestamp at = 3; }",
        );
        let schema = compile(&good).expect("compiles");
        assert_eq!(schema.message_named("Person").expect("a message").fields().len(), 1);
        let date = schema.message_named("google.type.Date").expect("a message");
        assert!(date.get_field_by_name("own").is_some());

        write("secret.proto", "message Secret { string x = 1; }");
        write("all/broken.proto", "message {");
        write("all/back.proto", "import 'circle.proto';");
        write("all/needy.proto", "import 'gone.proto';");
        fs::create_dir(root.path().join("all/folder.proto")).expect("made");
        let absolute = root.path().join("secret.proto").display().to_string();
        for (name, import, wanted) in [
            ("a", "gone.proto", "a.proto cannot be used: import 'gone.proto' not found"),
            (
                "b",
                "needy.proto",
                "b.proto cannot be used: in needy.proto: import 'gone.proto' not found",
            ),
            (
                "c",
                "../secret.proto",
                "c.proto cannot be used: import '../secret.proto' is no plain path: ",
            ),
            ("d", &absolute, "is no plain path"),
            ("e", "who/../../secret.proto", "import 'who/../../secret.proto' is no plain path"),
            ("f", "broken.proto", "f.proto cannot be used: in broken.proto: expected"),
            ("g", "folder.proto", "g.proto cannot be used: import 'folder.proto': cannot read "),
            (
                "circle",
                "back.proto",
                "import cycle detected: circle.proto -> back.proto -> circle.proto",
            ),
            ("self", "self.proto", "import cycle detected: self.proto -> self.proto"),
        ] {
            let path = write(&format!("all/{name}.proto"), &format!("import '{import}';"));
            let error = compile(&path).expect_err(import);
            assert!(error.contains(wanted), "{error}");
        }
        // A schema of a registry reads no files.
        let text = "syntax = 'proto3'; import 'Cargo.toml';";
        let reject = Schema::compile("schema 7", text, &[]).expect_err("no file");
        assert_eq!(reject.message, "schema 7 cannot be used: import 'Cargo.toml' not found");
    }

    #[test]
    fn all_built_in_files_compile() {
        for (name, _) in BUILT_IN {
            Schema::compile("it", &format!("syntax = 'proto3'; import '{name}';"), &[])
                .expect(name);
        }
    }
}
