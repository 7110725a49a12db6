//! Messages in protobuf's JSON form with the names of the .proto files, as `hubble -o jsonpb` prints them.

use prost::Message;
use prost_reflect::{DynamicMessage, SerializeOptions};

use super::mask::descriptor;
use super::pb;

/// A message that has a JSON form.
pub trait Described: Message + Default {
    const NAME: &'static str;
}

impl Described for pb::observer::GetFlowsResponse {
    const NAME: &'static str = "observer.GetFlowsResponse";
}

impl Described for pb::observer::GetAgentEventsResponse {
    const NAME: &'static str = "observer.GetAgentEventsResponse";
}

impl Described for pb::observer::ServerStatusResponse {
    const NAME: &'static str = "observer.ServerStatusResponse";
}

impl Described for pb::observer::GetNodesResponse {
    const NAME: &'static str = "observer.GetNodesResponse";
}

impl Described for pb::observer::GetNamespacesResponse {
    const NAME: &'static str = "observer.GetNamespacesResponse";
}

impl Described for pb::flow::Flow {
    const NAME: &'static str = "flow.Flow";
}

impl Described for pb::flow::FlowFilter {
    const NAME: &'static str = "flow.FlowFilter";
}

/// One line of JSON; members with default values are left out.
pub fn to_json<M: Described>(message: &M) -> Result<String, String> {
    let mut dynamic = DynamicMessage::new(descriptor(M::NAME));
    dynamic.transcode_from(message).map_err(|error| error.to_string())?;
    let mut text = Vec::new();
    dynamic
        .serialize_with_options(
            &mut serde_json::Serializer::new(&mut text),
            &SerializeOptions::new().use_proto_field_name(true),
        )
        .map_err(|error| error.to_string())?;
    String::from_utf8(text).map_err(|error| error.to_string())
}

/// Unknown members and values are errors.
pub fn from_json<M: Described>(text: &str) -> Result<M, String> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let dynamic = DynamicMessage::deserialize(descriptor(M::NAME), &mut deserializer)
        .map_err(|error| error.to_string())?;
    deserializer.end().map_err(|error| error.to_string())?;
    dynamic.transcode_to().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::hubble::convert::{self, Naming};
    use crate::flow::tests::flow as example;

    #[test]
    fn a_flow_has_hubble_s_names() {
        let flow = convert::flow(&example(80), &Naming { cluster: "default".into() });
        let json: serde_json::Value = serde_json::from_str(&to_json(&flow).unwrap()).unwrap();
        assert_eq!(json["IP"]["ipVersion"], "IPv4");
        assert_eq!(json["l4"]["TCP"]["flags"]["SYN"], true);
        assert_eq!(json["verdict"], "FORWARDED");
        assert_eq!(json["Type"], "L3_L4");
        assert_eq!(json["is_reply"], false);
        assert_eq!(json["source"]["pod_name"], "frontend");
        assert!(json["Summary"].as_str().unwrap().contains("SYN"));
        assert_eq!(from_json::<pb::flow::Flow>(&json.to_string()).unwrap(), flow);
    }

    #[test]
    fn a_filter_with_an_unknown_member_is_refused() {
        let filter: pb::flow::FlowFilter =
            from_json(r#"{"source_pod":["shop/"],"verdict":["DROPPED"]}"#).unwrap();
        assert_eq!(filter.verdict, [2]);
        for text in [r#"{"sauce":1}"#, "[]", "{} {}", r#"{"verdict":["MAYBE"]}"#] {
            assert!(from_json::<pb::flow::FlowFilter>(text).is_err(), "{text}");
        }
    }
}
