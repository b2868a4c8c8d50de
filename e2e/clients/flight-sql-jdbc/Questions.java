// Arrow's JDBC driver for Flight SQL with its default options, as tools use it: the scenario of e2e/README.md.

import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.math.BigDecimal;
import java.sql.Connection;
import java.sql.DatabaseMetaData;
import java.sql.Date;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.ResultSetMetaData;
import java.sql.SQLException;
import java.sql.SQLFeatureNotSupportedException;
import java.sql.Statement;
import java.sql.Time;
import java.sql.Timestamp;
import java.sql.Types;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.Properties;
import java.util.TreeSet;

public class Questions {
    static final String TOPIC = System.getenv("TOPIC");
    static final String ODD = System.getenv("ODD_TOPIC");
    static final String URL =
        "jdbc:arrow-flight-sql://127.0.0.1:" + System.getenv("FLIGHT_PORT") + "/?useEncryption=false";

    interface Step {
        Object[] run() throws Exception;
    }

    /** Prints one result line; a step gives triples of what, got and want. */
    static void step(String name, Step step) {
        List<String> wrong = new ArrayList<>();
        try {
            Object[] checks = step.run();
            for (int at = 0; at < checks.length; at += 3) {
                if (!Objects.equals(checks[at + 1], checks[at + 2])) {
                    wrong.add(checks[at] + ": got " + checks[at + 1] + ", want " + checks[at + 2]);
                }
            }
        } catch (Throwable error) {
            wrong.add(error + " at " + error.getStackTrace()[0]);
        }
        System.out.println(wrong.isEmpty() ? "ok " + name
            : "not ok " + name + " " + String.join("; ", wrong).replace('\n', ' '));
    }

    static Object[] checks(Object... checks) {
        return checks;
    }

    /** The rows of some columns, as texts. The driver counts what is not closed. */
    static List<List<String>> rows(ResultSet found, String... columns) throws SQLException {
        List<List<String>> rows = new ArrayList<>();
        try (found) {
            while (found.next()) {
                List<String> row = new ArrayList<>();
                for (String column : columns) {
                    row.add(found.getString(column));
                }
                rows.add(row);
            }
        }
        return rows;
    }

    static List<List<String>> asked(Statement statement, String sql, String... columns) throws SQLException {
        return rows(statement.executeQuery(sql), columns);
    }

    static String quoted(String name) {
        return '"' + name.replace("\"", "\"\"") + '"';
    }

    /** What goes wrong, in a word. */
    static String refusal(Statement statement, String sql) {
        try {
            statement.execute(sql);
            return "nothing";
        } catch (SQLException error) {
            return String.valueOf(error.getMessage());
        }
    }

    public static void main(String[] arguments) throws Exception {
        try (Connection connection = DriverManager.getConnection(URL)) {
            DatabaseMetaData about = connection.getMetaData();
            step("connect", () -> checks(
                "product", about.getDatabaseProductName(), "karrow",
                "read only", about.isReadOnly(), true,
                "autocommit", connection.getAutoCommit(), true,
                "quote", about.getIdentifierQuoteString(), "\"",
                "valid", connection.isValid(5), true));
            step("about", () -> {
                // Tools ask for all of this; what the driver itself cannot is no fault of the server.
                List<String> failed = new ArrayList<>();
                for (Method method : DatabaseMetaData.class.getMethods()) {
                    if (method.getParameterCount() > 0) {
                        continue;
                    }
                    try {
                        if (method.invoke(about) instanceof ResultSet found) {
                            found.close();
                        }
                    } catch (InvocationTargetException error) {
                        if (!(error.getCause() instanceof SQLFeatureNotSupportedException)) {
                            failed.add(method.getName() + ": " + error.getCause());
                        }
                    }
                }
                return checks("failures", failed, List.of(),
                    "transactions", about.supportsTransactions(), false,
                    "group by", about.supportsGroupBy(), true,
                    "outer joins", about.supportsFullOuterJoins(), true,
                    "keywords", about.getSQLKeywords().contains("QUALIFY"), true);
            });
            step("catalogs", () -> checks(
                "catalogs", rows(about.getCatalogs(), "TABLE_CAT"), List.of(List.of("live"), List.of("memory")),
                "schemas", rows(about.getSchemas(), "TABLE_CATALOG", "TABLE_SCHEM"),
                List.of(List.of("live", "main"), List.of("memory", "main")),
                "schemas of one", rows(about.getSchemas("live", "%"), "TABLE_SCHEM"), List.of(List.of("main")),
                "types", rows(about.getTableTypes(), "TABLE_TYPE"), List.of(List.of("TABLE"), List.of("VIEW"))));
            step("tables", () -> {
                List<List<String>> found = rows(about.getTables(null, null, "%", new String[] {"TABLE", "VIEW"}),
                    "TABLE_CAT", "TABLE_SCHEM", "TABLE_NAME", "TABLE_TYPE");
                // Every name that is listed can be asked for.
                List<String> failed = new ArrayList<>();
                try (Statement statement = connection.createStatement()) {
                    for (List<String> table : found) {
                        String name = quoted(table.get(0)) + "." + quoted(table.get(1)) + "." + quoted(table.get(2));
                        try (ResultSet rows = statement.executeQuery("select * from " + name + " limit 1")) {
                            if (!rows.next()) {
                                failed.add(name);
                            }
                        }
                    }
                }
                return checks("tables", new TreeSet<>(found.stream().map(row -> String.join("|", row)).toList()),
                    new TreeSet<>(List.of("live|main|" + TOPIC + "|VIEW", "live|main|" + ODD + "|VIEW",
                        "memory|main|" + TOPIC + "|VIEW", "memory|main|" + ODD + "|VIEW")),
                    "without rows", failed, List.of(),
                    "by a pattern", rows(about.getTables("memory", "main", TOPIC, null), "TABLE_NAME"),
                    List.of(List.of(TOPIC)));
            });
            step("columns", () -> {
                List<List<String>> columns = rows(about.getColumns("memory", "main", TOPIC, "%"),
                    "COLUMN_NAME", "DATA_TYPE", "IS_NULLABLE", "ORDINAL_POSITION");
                return checks("columns", columns.stream().map(row -> row.get(0)).toList(),
                    List.of("topic", "partition", "offset", "timestamp", "key", "headers", "payload", "error"),
                    "types", columns.stream().limit(5).map(row -> Integer.valueOf(row.get(1))).toList(),
                    List.of(Types.VARCHAR, Types.INTEGER, Types.BIGINT, Types.TIMESTAMP_WITH_TIMEZONE, Types.VARBINARY),
                    "keys", rows(about.getPrimaryKeys("memory", "main", TOPIC), "COLUMN_NAME"), List.of(),
                    "imported", rows(about.getImportedKeys("memory", "main", TOPIC), "PKCOLUMN_NAME"), List.of(),
                    "exported", rows(about.getExportedKeys("memory", "main", TOPIC), "PKCOLUMN_NAME"), List.of());
            });
            step("query", () -> {
                try (Statement statement = connection.createStatement()) {
                    return checks(
                        "cheapest", asked(statement, "select payload.id, min(payload.price) as price from "
                            + quoted(TOPIC) + " where payload is not null group by 1 order by 1 desc", "id", "price"),
                        List.of(List.of(String.valueOf((1L << 53) + 1), "19.99"),
                            List.of("-9223372036854775808", "5.0")),
                        "no rows", asked(statement, "select * from " + quoted(TOPIC) + " where false", "topic"), List.of(),
                        "odd names", asked(statement, "select payload.\"it's\"\"; drop view x; --\" as a from "
                            + quoted(ODD), "a"), List.of(List.of("1")));
                }
            });
            step("getters", () -> {
                String sql = "select \"offset\", \"timestamp\", key, payload.name, payload.paid, payload.price, "
                    + "payload.tags, date '2024-02-29' as day, time '01:02:03' as clock, 12.50::decimal(10,2) as sum, "
                    + "timestamp '2024-02-29 01:02:03.5' as at from " + quoted(TOPIC) + " order by 1";
                try (Statement statement = connection.createStatement(); ResultSet found = statement.executeQuery(sql)) {
                    ResultSetMetaData columns = found.getMetaData();
                    found.next();
                    Object[] first = checks(
                        "count", columns.getColumnCount(), 11,
                        "label", columns.getColumnLabel(4), "name",
                        "type", columns.getColumnType(6), Types.DOUBLE,
                        "offset", found.getLong("offset"), 0L,
                        "timestamp", found.getTimestamp("timestamp").toInstant(),
                        Instant.parse("2024-02-29T23:59:58.500Z"),
                        "key", Arrays.equals(found.getBytes("key"), new byte[] {'k', (byte) 0xff, '0'}), true,
                        "name", found.getString("name"), "Zoë 𝄞",
                        "paid", found.getBoolean("paid"), true,
                        "price", found.getDouble("price"), 19.99,
                        "tags", Arrays.asList((Object[]) found.getArray("tags").getArray()).toString(), "[a, ]",
                        "day", found.getDate("day"), Date.valueOf("2024-02-29"),
                        "clock", found.getTime("clock").toString(), "01:02:03",
                        "sum", found.getBigDecimal("sum"), new BigDecimal("12.50"),
                        "at", found.getTimestamp("at"), Timestamp.valueOf("2024-02-29 01:02:03.5"));
                    found.next();
                    List<Object> all = new ArrayList<>(Arrays.asList(first));
                    all.addAll(List.of("null text", found.getString("name") == null && found.wasNull(), true,
                        "null price", found.getObject("price") == null, true));
                    return all.toArray();
                }
            });
            step("prepared", () -> {
                String sql = "select payload.id from " + quoted(TOPIC)
                    + " where payload.name = ? or (\"offset\" > ? and payload.price < ?)";
                try (PreparedStatement statement = connection.prepareStatement(sql)) {
                    statement.setString(1, "Zoë 𝄞");
                    statement.setLong(2, 1000);
                    statement.setDouble(3, 0.5);
                    List<List<String>> first = rows(statement.executeQuery(), "id");
                    statement.setString(1, "x' or 1 = 1 --");
                    statement.setLong(2, 1);
                    statement.setDouble(3, 5.5);
                    List<List<String>> second = rows(statement.executeQuery(), "id");
                    return checks("parameters", statement.getParameterMetaData().getParameterCount(), 3,
                        "columns", statement.getMetaData().getColumnCount(), 1,
                        "first", first, List.of(List.of(String.valueOf((1L << 53) + 1))),
                        "second", second, List.of(List.of("-9223372036854775808")));
                }
            });
            step("parameter-types", () -> {
                String sql = "select ?::int as a, ?::boolean as b, ?::date as c, ?::timestamp as d, ?::varchar as e, "
                    + "?::double as f, ?::time as g, ?::decimal(10,2) as h";
                try (PreparedStatement statement = connection.prepareStatement(sql)) {
                    statement.setInt(1, 7);
                    statement.setBoolean(2, true);
                    statement.setDate(3, Date.valueOf("2024-02-29"));
                    statement.setTimestamp(4, Timestamp.valueOf("2024-02-29 01:02:03.5"));
                    statement.setNull(5, Types.VARCHAR);
                    statement.setDouble(6, 0.25);
                    statement.setTime(7, Time.valueOf("01:02:03"));
                    statement.setBigDecimal(8, new BigDecimal("12.50"));
                    try (ResultSet found = statement.executeQuery()) {
                        found.next();
                        return checks("int", found.getInt("a"), 7, "boolean", found.getBoolean("b"), true,
                            "date", found.getDate("c"), Date.valueOf("2024-02-29"),
                            "timestamp", found.getTimestamp("d"), Timestamp.valueOf("2024-02-29 01:02:03.5"),
                            "null", found.getString("e"), null, "double", found.getDouble("f"), 0.25,
                            "time", found.getTime("g").toString(), "01:02:03",
                            "decimal", found.getBigDecimal("h"), new BigDecimal("12.50"));
                    }
                }
            });
            step("errors", () -> {
                try (Statement statement = connection.createStatement()) {
                    return checks(
                        "syntax", refusal(statement, "selec 1").contains("LINE 1: selec 1"), true,
                        "table", refusal(statement, "select * from nosuch").contains("nosuch does not exist"), true,
                        "write", refusal(statement, "drop view " + quoted(TOPIC)).contains("only statements that read"), true,
                        "several", refusal(statement, "select 1; drop view x").contains("one statement is wanted"), true,
                        "late", refusal(statement, "select error('late')").contains("late"), true,
                        "still there", asked(statement, "select count(*) as n from " + quoted(TOPIC), "n"),
                        List.of(List.of("3")));
                }
            });
            step("users", () -> {
                Properties user = new Properties();
                user.setProperty("user", "me");
                user.setProperty("password", "secret");
                try (Connection other = DriverManager.getConnection(URL, user)) {
                    return checks("a user", "is taken", "is refused");
                } catch (SQLException error) {
                    return checks("why", String.valueOf(error.getMessage()).contains("knows no users"), true);
                }
            });
        }
    }
}
