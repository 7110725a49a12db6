//! Times and durations in expressions.

use super::*;

#[test]
fn times_are_times() {
    for (source, wanted) in [
        ("_flow.time > timestamp('2023-11-14T22:13:19Z')", true),
        ("_flow.time == timestamp('2023-11-14T22:13:20.000000080Z')", true),
        ("_flow.time - timestamp('2023-11-14T22:13:20Z') < duration('1s')", true),
        ("_flow.time + duration('1h') < timestamp('2023-11-14T23:00:00Z')", false),
        ("_flow.time.getFullYear() == 2023 && _flow.time.getHours('Europe/Berlin') == 23", true),
        ("_flow.time.getDayOfWeek() in [0, 6]", false),
        ("int(_flow.time) == 1700000000", true),
        ("timestamp(1700000000) <= _flow.time && timestamp(_flow.time) == _flow.time", true),
        ("_flow.time == timestamp('2023-11-14T23:13:20.00000008+01:00')", true),
        ("string(_flow.time) == '2023-11-14T22:13:20.00000008Z'", true),
        ("type(_flow.time) == type(timestamp(0)) && type(_flow.time) != type(duration('0'))", true),
        ("_flow.time in [timestamp(0), _flow.time] && timestamp(1) - duration('1s') == timestamp(0)", true),
        ("duration('1h') + _flow.time - _flow.time == duration('60m')", true),
        (
            "duration('1h') - duration('90m') == duration('-30m') && duration('1h') + duration('1s') > duration('1h')",
            true,
        ),
        (
            "string(duration('90m') - duration('1.5s')) == '5398.5s' && duration(duration('1s')) == duration('1s')",
            true,
        ),
    ] {
        assert_eq!(takes(source, &example(80)), wanted, "{source}");
    }
}

#[test]
fn times_have_parts() {
    let at = "timestamp('2024-02-29T23:04:05.678Z')";
    for (call, wanted) in [
        ("getFullYear()", 2024),
        ("getMonth()", 1),
        ("getDate()", 29),
        ("getDayOfMonth()", 28),
        ("getDayOfWeek()", 4),
        ("getDayOfYear()", 59),
        ("getHours()", 23),
        ("getMinutes()", 4),
        ("getSeconds()", 5),
        ("getMilliseconds()", 678),
        ("getHours('')", 23),
        ("getHours('UTC')", 23),
        ("getHours('Europe/Berlin')", 0),
        ("getMonth('Europe/Berlin')", 2),
        ("getHours('America/St_Johns')", 19),
        ("getMinutes('America/St_Johns')", 34),
        ("getDayOfWeek('+00:56')", 5),
        ("getHours('-02:30')", 20),
        ("getMinutes('-00:05')", 59),
    ] {
        assert!(takes(&format!("{at}.{call} == {wanted}"), &example(80)), "{call}");
    }
    for (call, wanted) in [
        ("getHours()", -1),
        ("getMinutes()", -90),
        ("getSeconds()", -5400),
        ("getMilliseconds()", -5_400_000),
    ] {
        assert!(takes(&format!("duration('-1h30m').{call} == {wanted}"), &example(80)), "{call}");
    }
    // Summer time began the second before.
    assert!(takes("timestamp('2024-03-31T01:00:00Z').getHours('Europe/Berlin') == 3", &example(80)));
    assert!(takes("timestamp('2024-03-31T00:59:59Z').getHours('Europe/Berlin') == 1", &example(80)));
    assert!(takes("timestamp('9999-12-31T23:59:59Z').getHours('America/New_York') == 18", &example(80)));
}

#[test]
fn what_no_time_can_be_is_an_error() {
    for source in [
        "timestamp('yesterday') < _flow.time",
        "timestamp(253402300800) > _flow.time",
        "timestamp(-62135596801) < _flow.time",
        "timestamp(9223372036854775807) > _flow.time",
        "timestamp('9999-12-31T23:59:59Z') + duration('1s') > _flow.time",
        "timestamp('0001-01-01T00:00:00Z') - duration('1ns') < _flow.time",
        "timestamp(253402300799) - timestamp(-62135596800) > duration('0')",
        "duration('1') < duration('2')",
        "duration('9223372036s') + duration('9223372036s') > duration('0')",
        "duration('1s') - _flow.time == duration('0')",
        "_flow.time + _flow.time == _flow.time",
        "_flow.time + 1 == _flow.time",
        "_flow.time.getHours('Europe/Atlantis') == 0",
        "_flow.time.getHours('+24:00') == 0",
        "_flow.time.getHours('+01:60') == 0",
        "timestamp('9999-12-31T23:59:59Z').getHours('+01:00') >= 0 || timestamp(duration('1s')) == _flow.time",
        "duration('1s').getFullYear() == 0",
    ] {
        let program = Program::compile(source).unwrap_or_else(|error| panic!("{source}: {error}"));
        let flow = DynamicMessage::new(FLOW.clone());
        assert_eq!(program.run(&flow, &Meter::new(WORK)), Outcome::Error, "{source}");
    }
    for source in ["_flow.time == duration('1s')", "_flow.time < 1", "_flow.time == '2023'"] {
        assert!(refusal(source).contains("is not for timestamp and"), "{source}");
    }
}
