use super::*;

fn guard_with(token: Option<&str>) -> Guard {
    Guard {
        transport: Transport::Plain,
        token: token.map(|text| Token::new(text).unwrap()),
        names: vec!["sluice.lan".into()],
    }
}

fn check(guard: &Guard, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<(), Refused> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(name.parse::<header::HeaderName>().unwrap(), value.parse().unwrap());
    }
    guard.check(&method.parse().unwrap(), path, None, &map)
}

const HOST: (&str, &str) = ("host", "127.0.0.1:4246");

#[test]
fn a_name_that_leads_here_is_not_ours_dns_rebinding() {
    let guard = guard_with(None);
    for host in ["127.0.0.1:4246", "localhost:4246", "LOCALHOST", "[::1]:4246", "sluice.lan", "192.0.2.7"] {
        assert_eq!(check(&guard, "GET", "/", &[("host", host)]), Ok(()), "{host}");
    }
    for host in
        ["evil.example:4246", "127.0.0.1.evil.example", "localhost.evil.example", "", "a@127.0.0.1", "x y"]
    {
        assert_eq!(check(&guard, "GET", "/", &[("host", host)]), Err(Refused::Host), "{host}");
    }
    assert_eq!(check(&guard, "GET", "/", &[]), Err(Refused::Host));
    assert_eq!(check(&guard, "GET", "/", &[HOST, ("host", "evil.example")]), Err(Refused::Host));
}

#[test]
fn requests_of_other_sites_are_refused() {
    let guard = guard_with(None);
    let api = "/api/v1/live";
    for headers in [
        &[HOST, ("origin", "http://evil.example")][..],
        &[HOST, ("origin", "null")],
        &[HOST, ("origin", "https://127.0.0.1:4246")],
        &[HOST, ("origin", "http://127.0.0.1:4247")],
        &[HOST, ("sec-fetch-site", "cross-site")],
        &[HOST, ("sec-fetch-site", "same-site")],
        &[
            HOST,
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "navigate"),
            ("sec-fetch-dest", "document"),
        ],
        &[HOST, ("origin", "http://127.0.0.1:4246"), ("origin", "http://evil.example")],
    ] {
        assert_eq!(check(&guard, "GET", api, headers), Err(Refused::CrossSite), "{headers:?}");
    }
    for headers in [
        &[HOST][..],
        &[HOST, ("sec-fetch-site", "same-origin"), ("origin", "http://127.0.0.1:4246")],
        &[HOST, ("sec-fetch-site", "none")],
    ] {
        assert_eq!(check(&guard, "GET", api, headers), Ok(()), "{headers:?}");
    }
}

#[test]
fn a_link_to_the_front_page_may_be_followed_and_not_framed() {
    let guard = guard_with(None);
    let link = [
        HOST,
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-mode", "navigate"),
        ("sec-fetch-dest", "document"),
    ];
    assert_eq!(check(&guard, "GET", "/", &link), Ok(()));
    let frame = [
        HOST,
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-mode", "navigate"),
        ("sec-fetch-dest", "iframe"),
    ];
    assert_eq!(check(&guard, "GET", "/", &frame), Err(Refused::CrossSite));
    let image =
        [HOST, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors"), ("sec-fetch-dest", "image")];
    assert_eq!(check(&guard, "GET", "/", &image), Err(Refused::CrossSite));
}

#[test]
fn nothing_can_be_changed() {
    let guard = guard_with(None);
    let same = [HOST, ("origin", "http://127.0.0.1:4246")];
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"] {
        let refused = check(&guard, method, "/api/v1/policies", &same);
        assert!(refused.is_err(), "{method}");
    }
    assert_eq!(check(&guard, "POST", "/login", &[HOST]), Err(Refused::CrossSite), "no origin");
    assert_eq!(check(&guard, "POST", "/login", &same), Ok(()));
}

#[test]
fn the_api_needs_the_token_as_header_or_cookie() {
    let secret = "a-long-enough-token";
    let guard = guard_with(Some(secret));
    let api = "/api/v1/policies";
    assert_eq!(check(&guard, "GET", api, &[HOST]), Err(Refused::Token));
    assert_eq!(check(&guard, "GET", "/", &[HOST]), Ok(()));
    assert_eq!(
        check(&guard, "GET", api, &[HOST, ("authorization", "Bearer a-long-enough-tokem")]),
        Err(Refused::Token)
    );
    assert_eq!(check(&guard, "GET", api, &[HOST, ("authorization", &format!("Bearer {secret}"))]), Ok(()));
    let set = guard.token.as_ref().unwrap().set_cookie(Transport::Tls);
    assert!(set.contains("HttpOnly") && set.contains("SameSite=Strict") && set.contains("Secure"));
    assert!(!set.contains(secret));
    let pair = set.split(';').next().unwrap();
    assert_eq!(check(&guard, "GET", api, &[HOST, ("cookie", &format!("other=1; {pair}"))]), Ok(()));
    assert_eq!(
        check(&guard, "GET", api, &[HOST, ("cookie", &format!("sluice-ui={secret}"))]),
        Err(Refused::Token)
    );
}

#[test]
fn a_short_token_is_no_token() {
    assert!(Token::new("short").is_none());
    assert_eq!(format!("{:?}", Token::new("a-long-enough-token").unwrap()), "Token(..)");
}
