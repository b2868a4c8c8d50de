//! What there is to be read: catalogs, schemas and tables as DuckDB has them, and their columns as `select *` streams them.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BinaryBuilder, RecordBatch, StringArray, UInt64Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow_flight::error::FlightError;
use arrow_flight::sql::{Command, CommandGetTables};

use super::{READ_ONLY, encapsulated, info};
use crate::error::{Error, Result};
use crate::sql::engine::{Engine, Parameters};
use crate::sql::types::quoted;

/// Where queries with a bare name look, and where topics as windows and as stored rows are.
const CATALOGS: &str = "select distinct database_name from duckdb_schemas() where database_name not in ('system', 'temp') order by 1";

/// All views and tables of topics: karrow's own are in other schemas.
const TABLES: &str = "select database_name, schema_name, view_name, 'VIEW' from duckdb_views() \
     where not internal and schema_name = 'main' \
     union all select database_name, schema_name, table_name, 'TABLE' from duckdb_tables() \
     where not internal and schema_name = 'main'";

/// Every catalog has one schema with topics.
const SCHEMA: &str = "main";

/// Kinds of tables.
const TABLE_TYPES: [&str; 2] = ["TABLE", "VIEW"];

/// The columns of what a command of the catalog asks for.
///
/// # Errors
/// It asks for something else.
pub fn schema(command: &Command) -> Result<SchemaRef> {
    Ok(match command.clone() {
        Command::CommandGetCatalogs(of) => of.into_builder().schema(),
        Command::CommandGetDbSchemas(of) => of.into_builder().schema(),
        Command::CommandGetTables(of) => of.into_builder().schema(),
        Command::CommandGetTableTypes(of) => of.into_builder().schema(),
        Command::CommandGetSqlInfo(_) => info::sql_info()?.schema(),
        Command::CommandGetXdbcTypeInfo(_) => info::type_info()?.schema(),
        Command::CommandGetPrimaryKeys(_) => Arc::new(Schema::new(primary_keys())),
        Command::CommandGetExportedKeys(_)
        | Command::CommandGetImportedKeys(_)
        | Command::CommandGetCrossReference(_) => Arc::new(Schema::new(foreign_keys())),
        Command::CommandStatementUpdate(_)
        | Command::CommandPreparedStatementUpdate(_)
        | Command::CommandStatementIngest(_) => return Err(Error::invalid(READ_ONLY)),
        Command::CommandStatementSubstraitPlan(_) => {
            return Err(Error::invalid(super::NO_SUBSTRAIT));
        }
        other => {
            let name = other.type_url().trim_start_matches(super::TYPE_URL);
            return Err(Error::invalid(format!("nothing can be read with {name}")));
        }
    })
}

/// What a command of the catalog asks for.
///
/// # Errors
/// As [`schema`]; or the engine's.
pub async fn rows(engine: &Arc<Engine>, command: Command) -> Result<RecordBatch> {
    let batch = match command {
        Command::CommandGetCatalogs(of) => {
            let mut found = of.into_builder();
            names(engine, CATALOGS).await?.iter().for_each(|[name]| found.append(name));
            found.build()
        }
        Command::CommandGetDbSchemas(mut of) => {
            given(&mut of.catalog);
            given(&mut of.db_schema_filter_pattern);
            let mut found = of.into_builder();
            names(engine, CATALOGS).await?.iter().for_each(|[name]| found.append(name, SCHEMA));
            found.build()
        }
        Command::CommandGetTables(of) => return tables(engine, of).await,
        Command::CommandGetTableTypes(of) => {
            let mut found = of.into_builder();
            TABLE_TYPES.iter().for_each(|name| found.append(name));
            found.build()
        }
        Command::CommandGetSqlInfo(of) => of.into_builder(info::sql_info()?).build(),
        Command::CommandGetXdbcTypeInfo(of) => of.into_builder(info::type_info()?).build(),
        // Topics have no keys in the sense of SQL.
        other => Ok(RecordBatch::new_empty(schema(&other)?)),
    };
    batch.map_err(internal)
}

async fn tables(engine: &Arc<Engine>, mut of: CommandGetTables) -> Result<RecordBatch> {
    given(&mut of.catalog);
    given(&mut of.db_schema_filter_pattern);
    given(&mut of.table_name_filter_pattern);
    of.table_types.retain(|kind| !kind.is_empty());
    let with_schema = std::mem::take(&mut of.include_schema);
    let mut found = of.into_builder();
    let nothing = Schema::empty();
    for [catalog, schema, table, kind] in names(engine, TABLES).await? {
        found.append(catalog, schema, table, kind, &nothing).map_err(internal)?;
    }
    let found = found.build().map_err(internal)?;
    if !with_schema {
        return Ok(found);
    }
    let text = |column: usize, row| found.column(column).as_string::<i32>().value(row);
    let (mut rows, mut schemas) = (Vec::new(), BinaryBuilder::new());
    for row in 0..found.num_rows() {
        let name = [0, 1, 2].map(|column| quoted(text(column, row))).join(".");
        match engine.columns(format!("select * from {name}"), Parameters::None).await {
            Ok(schema) => {
                schemas.append_value(encapsulated(&schema)?);
                rows.push(row as u64);
            }
            // It may have gone since it was listed.
            Err(error) => tracing::debug!(table = name, %error, "listing tables"),
        }
    }
    let described = take_record_batch(&found, &UInt64Array::from(rows));
    let described = described.map_err(|error| Error::internal(error.to_string()))?;
    let schema: ArrayRef = Arc::new(schemas.finish());
    let columns = described.columns().iter().cloned().chain([schema]).collect();
    let with_schema = CommandGetTables { include_schema: true, ..CommandGetTables::default() };
    RecordBatch::try_new(with_schema.into_builder().schema(), columns)
        .map_err(|error| Error::internal(error.to_string()))
}

/// An empty filter is none: some clients send it for all.
fn given(filter: &mut Option<String>) {
    filter.take_if(|filter| filter.is_empty());
}

/// The rows of a query whose columns are texts, as many as there are.
async fn names<const N: usize>(engine: &Arc<Engine>, sql: &str) -> Result<Vec<[String; N]>> {
    let mut answer = engine.query(sql.to_owned(), Parameters::None).await?;
    let mut batches = Vec::new();
    while let Some(batch) = answer.next().await {
        batches.push(batch?);
    }
    let malformed = |why: String| Error::internal(format!("the catalog: {why}"));
    let all = concat_batches(&answer.schema, &batches);
    let all = all.map_err(|error| malformed(error.to_string()))?;
    let texts: Vec<&StringArray> =
        all.columns().iter().filter_map(|column| column.as_string_opt::<i32>()).collect();
    let texts: [&StringArray; N] =
        texts.try_into().map_err(|_| malformed(format!("{}", answer.schema)))?;
    Ok((0..all.num_rows()).map(|row| texts.map(|column| column.value(row).to_owned())).collect())
}

fn text(name: &str, is_nullable: bool) -> Field {
    Field::new(name, DataType::Utf8, is_nullable)
}

/// As FlightSql.proto has them.
fn primary_keys() -> Vec<Field> {
    vec![
        text("catalog_name", true),
        text("db_schema_name", true),
        text("table_name", false),
        text("column_name", false),
        text("key_name", true),
        Field::new("key_sequence", DataType::Int32, false),
    ]
}

/// As FlightSql.proto has them.
fn foreign_keys() -> Vec<Field> {
    vec![
        text("pk_catalog_name", true),
        text("pk_db_schema_name", true),
        text("pk_table_name", false),
        text("pk_column_name", false),
        text("fk_catalog_name", true),
        text("fk_db_schema_name", true),
        text("fk_table_name", false),
        text("fk_column_name", false),
        Field::new("key_sequence", DataType::Int32, false),
        text("fk_key_name", true),
        text("pk_key_name", true),
        Field::new("update_rule", DataType::UInt8, false),
        Field::new("delete_rule", DataType::UInt8, false),
    ]
}

fn internal(error: FlightError) -> Error {
    Error::internal(error.to_string())
}
