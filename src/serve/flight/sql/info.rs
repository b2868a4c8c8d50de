//! What karrow's SQL is like, as Flight SQL asks for it: SqlInfo and types.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use arrow_flight::error::FlightError;
use arrow_flight::sql::metadata::{
    SqlInfoData, SqlInfoDataBuilder, XdbcTypeInfo, XdbcTypeInfoData, XdbcTypeInfoDataBuilder,
};
use arrow_flight::sql::{
    Nullable, Searchable, SqlInfo, SqlNullOrdering, SqlSupportedCaseSensitivity,
    SqlSupportedTransaction, XdbcDataType, XdbcDatetimeSubcode,
};

use crate::error::{Error, Result};

/// All bits of the lowest `count`.
const fn bits(count: u32) -> i32 {
    (1 << count) - 1
}

/// Bits of SqlSupportedGroupBy, SqlSupportedSubqueries, SqlSupportedUnions and SqlOuterJoinsSupportLevel: all that there are.
const BITMASKS: [(SqlInfo, i32); 14] = [
    (SqlInfo::SqlSupportedGroupBy, bits(2)),
    (SqlInfo::SqlSupportedSubqueries, bits(4)),
    (SqlInfo::SqlSupportedUnions, bits(2)),
    (SqlInfo::SqlOuterJoinsSupportLevel, bits(3)),
    // Minimum, core and extended grammar; the entry level of ANSI 92.
    (SqlInfo::SqlSupportedGrammar, bits(3)),
    (SqlInfo::SqlAnsi92SupportedLevel, bits(1)),
    // Names of schemas and catalogs stand in no calls of procedures, definitions and privileges: there are none of these.
    (SqlInfo::SqlSchemasSupportedActions, 0),
    (SqlInfo::SqlCatalogsSupportedActions, 0),
    (SqlInfo::SqlSupportedPositionedCommands, 0),
    // No transactions, isolated not at all.
    (SqlInfo::SqlSupportedTransactionsIsolationLevels, 1),
    // Forward only, and read only.
    (SqlInfo::SqlSupportedResultSetTypes, 1 << 1),
    (SqlInfo::SqlSupportedConcurrenciesForResultSetForwardOnly, 1 << 1),
    (SqlInfo::SqlSupportedConcurrenciesForResultSetScrollSensitive, 0),
    (SqlInfo::SqlSupportedConcurrenciesForResultSetScrollInsensitive, 0),
];

const FLAGS: [(SqlInfo, bool); 32] = [
    (SqlInfo::FlightSqlServerReadOnly, true),
    (SqlInfo::FlightSqlServerSql, true),
    (SqlInfo::FlightSqlServerSubstrait, false),
    (SqlInfo::FlightSqlServerCancel, false),
    (SqlInfo::FlightSqlServerBulkIngestion, false),
    (SqlInfo::FlightSqlServerIngestTransactionsSupported, false),
    (SqlInfo::SqlDdlCatalog, false),
    (SqlInfo::SqlDdlSchema, false),
    (SqlInfo::SqlDdlTable, false),
    (SqlInfo::SqlAllTablesAreSelectable, true),
    (SqlInfo::SqlSupportsColumnAliasing, true),
    (SqlInfo::SqlNullPlusNullIsNull, true),
    (SqlInfo::SqlSupportsTableCorrelationNames, true),
    (SqlInfo::SqlSupportsDifferentTableCorrelationNames, false),
    (SqlInfo::SqlSupportsExpressionsInOrderBy, true),
    (SqlInfo::SqlSupportsOrderByUnrelated, true),
    (SqlInfo::SqlSupportsLikeEscapeClause, true),
    (SqlInfo::SqlSupportsNonNullableColumns, false),
    (SqlInfo::SqlSupportsIntegrityEnhancementFacility, false),
    (SqlInfo::SqlCatalogAtStart, true),
    (SqlInfo::SqlSelectForUpdateSupported, false),
    (SqlInfo::SqlStoredProceduresSupported, false),
    (SqlInfo::SqlCorrelatedSubqueriesSupported, true),
    (SqlInfo::SqlMaxRowSizeIncludesBlobs, true),
    (SqlInfo::SqlTransactionsSupported, false),
    (SqlInfo::SqlDataDefinitionCausesTransactionCommit, false),
    (SqlInfo::SqlDataDefinitionsInTransactionsIgnored, false),
    (SqlInfo::SqlBatchUpdatesSupported, false),
    (SqlInfo::SqlSavepointsSupported, false),
    (SqlInfo::SqlNamedParametersSupported, false),
    (SqlInfo::SqlLocatorsUpdateCopy, false),
    (SqlInfo::SqlStoredFunctionsUsingCallSyntaxSupported, false),
];

/// Zero is no limit, or one that nobody knows.
const LIMITS: [SqlInfo; 21] = [
    SqlInfo::SqlMaxBinaryLiteralLength,
    SqlInfo::SqlMaxCharLiteralLength,
    SqlInfo::SqlMaxColumnNameLength,
    SqlInfo::SqlMaxColumnsInGroupBy,
    SqlInfo::SqlMaxColumnsInIndex,
    SqlInfo::SqlMaxColumnsInOrderBy,
    SqlInfo::SqlMaxColumnsInSelect,
    SqlInfo::SqlMaxColumnsInTable,
    SqlInfo::SqlMaxConnections,
    SqlInfo::SqlMaxCursorNameLength,
    SqlInfo::SqlMaxIndexLength,
    SqlInfo::SqlDbSchemaNameLength,
    SqlInfo::SqlMaxProcedureNameLength,
    SqlInfo::SqlMaxCatalogNameLength,
    SqlInfo::SqlMaxRowSize,
    SqlInfo::SqlMaxStatementLength,
    SqlInfo::SqlMaxStatements,
    SqlInfo::SqlMaxTableNameLength,
    SqlInfo::SqlMaxTablesInSelect,
    SqlInfo::SqlMaxUsernameLength,
    SqlInfo::SqlDefaultTransactionIsolation,
];

const TEXTS: [(SqlInfo, &str); 9] = [
    (SqlInfo::FlightSqlServerName, "karrow"),
    (SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION")),
    // Of the format: metadata version 5.
    (SqlInfo::FlightSqlServerArrowVersion, "1.5"),
    (SqlInfo::SqlIdentifierQuoteChar, "\""),
    (SqlInfo::SqlSearchStringEscape, "\\"),
    (SqlInfo::SqlExtraNameCharacters, ""),
    (SqlInfo::SqlSchemaTerm, "schema"),
    (SqlInfo::SqlProcedureTerm, "macro"),
    (SqlInfo::SqlCatalogTerm, "catalog"),
];

/// What is not in SQL:2003 and must be quoted; and functions by their names in ODBC's escape syntax.
const LISTS: [(SqlInfo, &[&str]); 5] = [
    (
        SqlInfo::SqlKeywords,
        &[
            "ANALYSE",
            "ANALYZE",
            "ASOF",
            "DEFERRABLE",
            "DESCRIBE",
            "GLOB",
            "ILIKE",
            "INITIALLY",
            "ISNULL",
            "LIMIT",
            "NOTNULL",
            "OFFSET",
            "PIVOT",
            "PLACING",
            "POSITIONAL",
            "QUALIFY",
            "RETURNING",
            "SHOW",
            "SIMILAR",
            "SUMMARIZE",
            "UNPIVOT",
            "VARIADIC",
        ],
    ),
    (
        SqlInfo::SqlNumericFunctions,
        &[
            "ABS", "ACOS", "ASIN", "ATAN", "ATAN2", "CEILING", "COS", "COT", "DEGREES", "EXP",
            "FLOOR", "LOG", "LOG10", "MOD", "PI", "POWER", "RADIANS", "ROUND", "SIGN", "SIN",
            "SQRT", "TAN",
        ],
    ),
    (
        SqlInfo::SqlStringFunctions,
        &[
            "ASCII",
            "CHAR",
            "CONCAT",
            "LCASE",
            "LEFT",
            "LENGTH",
            "LTRIM",
            "REPEAT",
            "REPLACE",
            "RIGHT",
            "RTRIM",
            "SUBSTRING",
            "UCASE",
        ],
    ),
    (SqlInfo::SqlSystemFunctions, &["IFNULL"]),
    (
        SqlInfo::SqlDatetimeFunctions,
        &[
            "DAYNAME",
            "DAYOFMONTH",
            "DAYOFWEEK",
            "DAYOFYEAR",
            "HOUR",
            "MINUTE",
            "MONTH",
            "MONTHNAME",
            "NOW",
            "QUARTER",
            "SECOND",
            "WEEK",
            "YEAR",
        ],
    ),
];

/// All of SqlInfo.
///
/// # Errors
/// None that anybody can bring about.
pub fn sql_info() -> Result<&'static SqlInfoData> {
    static INFO: OnceLock<std::result::Result<SqlInfoData, String>> = OnceLock::new();
    let build = || {
        let mut infos = SqlInfoDataBuilder::new();
        TEXTS.iter().for_each(|(name, text)| infos.append(*name, *text));
        FLAGS.iter().for_each(|(name, flag)| infos.append(*name, *flag));
        BITMASKS.iter().for_each(|(name, bits)| infos.append(*name, *bits));
        LIMITS.iter().for_each(|name| infos.append(*name, 0_i64));
        LISTS.iter().for_each(|(name, list)| infos.append(*name, *list));
        for (name, number) in [
            (SqlInfo::FlightSqlServerTransaction, SqlSupportedTransaction::None as i32),
            (SqlInfo::FlightSqlServerStatementTimeout, 0),
            (SqlInfo::FlightSqlServerTransactionTimeout, 0),
        ] {
            infos.append(name, number);
        }
        let any_case = SqlSupportedCaseSensitivity::SqlCaseSensitivityCaseInsensitive;
        infos.append(SqlInfo::SqlIdentifierCase, any_case as i32);
        infos.append(SqlInfo::SqlQuotedIdentifierCase, any_case as i32);
        infos.append(SqlInfo::SqlNullOrdering, SqlNullOrdering::SqlNullsSortedAtEnd as i32);
        infos.append(SqlInfo::SqlSupportsConvert, BTreeMap::<i32, Vec<i32>>::new());
        infos.build().map_err(|error| error.to_string())
    };
    INFO.get_or_init(build).as_ref().map_err(|error| Error::internal(error.clone()))
}

/// A type: its name, its kind, digits or bytes, what stands around literals, what it is called with, and whether it is a
/// number, and a signed one.
type Type = (&'static str, XdbcDataType, i32, Option<&'static str>, &'static [&'static str], Sign);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sign {
    Signed,
    Unsigned,
    None,
}

const TYPES: [Type; 21] = {
    use Sign::{None as NoNumber, Signed, Unsigned};
    use XdbcDataType::*;
    const TEXT: Option<&str> = Some("'");
    [
        ("BOOLEAN", XdbcBit, 1, None, &[], NoNumber),
        ("TINYINT", XdbcTinyint, 3, None, &[], Signed),
        ("SMALLINT", XdbcSmallint, 5, None, &[], Signed),
        ("INTEGER", XdbcInteger, 10, None, &[], Signed),
        ("BIGINT", XdbcBigint, 19, None, &[], Signed),
        ("HUGEINT", XdbcNumeric, 38, None, &[], Signed),
        ("UTINYINT", XdbcTinyint, 3, None, &[], Unsigned),
        ("USMALLINT", XdbcSmallint, 5, None, &[], Unsigned),
        ("UINTEGER", XdbcInteger, 10, None, &[], Unsigned),
        ("UBIGINT", XdbcBigint, 20, None, &[], Unsigned),
        ("FLOAT", XdbcReal, 7, None, &[], Signed),
        ("DOUBLE", XdbcDouble, 15, None, &[], Signed),
        ("DECIMAL", XdbcDecimal, 38, None, &["precision", "scale"], Signed),
        ("VARCHAR", XdbcVarchar, i32::MAX, TEXT, &[], NoNumber),
        ("UUID", XdbcVarchar, 36, TEXT, &[], NoNumber),
        ("BLOB", XdbcVarbinary, i32::MAX, TEXT, &[], NoNumber),
        ("DATE", XdbcDate, 10, TEXT, &[], NoNumber),
        ("TIME", XdbcTime, 15, TEXT, &[], NoNumber),
        ("TIMESTAMP", XdbcTimestamp, 26, TEXT, &[], NoNumber),
        ("TIMESTAMP WITH TIME ZONE", XdbcTimestamp, 32, TEXT, &[], NoNumber),
        ("INTERVAL", XdbcInterval, 38, TEXT, &[], NoNumber),
    ]
};

/// The types of columns, by their numbers in ODBC, as the specification has them.
///
/// # Errors
/// None that anybody can bring about.
pub fn type_info() -> Result<&'static XdbcTypeInfoData> {
    static INFO: OnceLock<std::result::Result<XdbcTypeInfoData, String>> = OnceLock::new();
    let build = || {
        let mut infos = XdbcTypeInfoDataBuilder::new();
        TYPES.iter().map(described).for_each(|info| infos.append(info));
        infos.build().map_err(|error: FlightError| error.to_string())
    };
    INFO.get_or_init(build).as_ref().map_err(|error| Error::internal(error.clone()))
}

fn described((name, data_type, size, quote, parameters, sign): &Type) -> XdbcTypeInfo {
    let is_number = *sign != Sign::None;
    let quote = quote.map(str::to_owned);
    let (datetime_subcode, sql_data_type) = match data_type {
        XdbcDataType::XdbcDate => {
            // ODBC's number for dates has that name here.
            (Some(XdbcDatetimeSubcode::XdbcSubcodeYear), XdbcDataType::XdbcDatetime)
        }
        XdbcDataType::XdbcTime => {
            (Some(XdbcDatetimeSubcode::XdbcSubcodeTime), XdbcDataType::XdbcDatetime)
        }
        XdbcDataType::XdbcTimestamp => {
            (Some(XdbcDatetimeSubcode::XdbcSubcodeTimestamp), XdbcDataType::XdbcDatetime)
        }
        other => (None, *other),
    };
    let is_decimal = !parameters.is_empty();
    XdbcTypeInfo {
        type_name: (*name).to_owned(),
        data_type: *data_type,
        column_size: Some(*size),
        literal_prefix: quote.clone(),
        literal_suffix: quote,
        create_params: is_decimal
            .then(|| parameters.iter().map(|parameter| (*parameter).to_owned()).collect()),
        nullable: Nullable::NullabilityNullable,
        case_sensitive: *data_type == XdbcDataType::XdbcVarchar,
        searchable: Searchable::Full,
        unsigned_attribute: is_number.then_some(*sign == Sign::Unsigned),
        fixed_prec_scale: false,
        auto_increment: is_number.then_some(false),
        local_type_name: Some((*name).to_owned()),
        minimum_scale: is_decimal.then_some(0),
        maximum_scale: is_decimal.then_some(38),
        sql_data_type,
        datetime_subcode,
        num_prec_radix: is_number.then_some(10),
        interval_precision: None,
    }
}
