//! `karrow client actions`: what else a server can do.

use arrow_flight::{Action, ActionType, Empty};
use futures::TryStreamExt;
use serde_json::{Value, json};

use super::connection::Server;
use super::output::{print, terminal_width};
use super::{Failure, note, table};
use crate::config::flags::client::{ActionsFlags, ListOutput};
use crate::encode::csv;

/// Lists the actions, or does one and prints its results, a line each.
///
/// # Errors
/// The server's.
pub async fn run(server: Server, flags: ActionsFlags) -> Result<(), Failure> {
    let failure = |status| server.failure(&status);
    let Some(name) = flags.name else {
        let actions = server.client().list_actions(Empty {}).await.map_err(failure)?.into_inner();
        let actions: Vec<ActionType> = actions.try_collect().await.map_err(failure)?;
        return print(listed(&actions, flags.output).as_bytes());
    };
    let body = flags.body.unwrap_or_default();
    let created = (name == "create-topic").then(|| topic_of(&body));
    let action = Action { r#type: name, body: body.into() };
    let mut results = server.client().do_action(action).await.map_err(failure)?.into_inner();
    while let Some(result) = results.try_next().await.map_err(failure)? {
        // As it is: what an action answers is its own affair.
        let mut line = result.body.to_vec();
        line.push(b'\n');
        print(&line)?;
    }
    if let Some(topic) = created {
        // The server answers nothing.
        note(&format!("topic {topic} is created"));
    }
    Ok(())
}

/// The topic that a body of create-topic names.
fn topic_of(body: &str) -> String {
    let fields: Option<Value> = serde_json::from_str(body).ok();
    let topic = fields.as_ref().and_then(|fields| fields.get("topic")?.as_str());
    topic.unwrap_or(body).to_owned()
}

fn listed(actions: &[ActionType], output: ListOutput) -> String {
    let pairs = actions.iter().map(|action| (&action.r#type, &action.description));
    match output {
        ListOutput::Table => {
            let rows: Vec<Vec<String>> =
                pairs.map(|(name, about)| vec![name.clone(), about.clone()]).collect();
            table::simple(&["action", "description"], &rows, terminal_width())
        }
        ListOutput::Json => pairs
            .map(|(name, about)| format!("{}\n", json!({ "action": name, "description": about })))
            .collect(),
        ListOutput::Csv => {
            let mut text = "action,description\n".to_owned();
            pairs.for_each(|(name, about)| {
                csv::write_line(
                    [name, about].map(|value| Some(value.as_str())).into_iter(),
                    &mut text,
                );
            });
            text
        }
    }
}
