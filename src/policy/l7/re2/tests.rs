//! What the two dialects read differently, and that nothing else changes.

use proptest::prelude::*;

use super::translate;

fn compiled(translated: &str) -> regex::bytes::Regex {
    regex::bytes::RegexBuilder::new(&format!(r"\A(?:{translated})\z")).unicode(false).build().unwrap()
}

fn matches(expression: &str, text: &str) -> bool {
    let translated = translate(expression).unwrap_or_else(|problem| panic!("{expression}: {problem}"));
    compiled(&translated).is_match(text.as_bytes())
}

/// Expression, texts that it matches, texts that it does not.
type Case = (&'static str, &'static [&'static str], &'static [&'static str]);

#[track_caller]
fn mean(cases: &[Case]) {
    for (expression, yes, no) in cases {
        for text in *yes {
            assert!(matches(expression, text), "{expression} should match {text:?}");
        }
        for text in *no {
            assert!(!matches(expression, text), "{expression} should not match {text:?}");
        }
    }
}

#[test]
fn brackets_inside_brackets_are_characters() {
    mean(&[
        ("/[[ab]]", &["/a]", "/[]"], &["/a", "/b", "/[ab]"]),
        ("/[^[]x", &["/ax"], &["/[x"]),
        ("/[[:alpha:]]+", &["/ab"], &["/1", "/:"]),
        ("/[[:^digit:]]", &["/a"], &["/1"]),
        ("/[a[:digit:]-]", &["/a", "/7", "/-"], &["/b"]),
        ("/[[:x]", &["/:", "/x", "/["], &["/]"]),
        ("/[:alpha:]", &["/a", "/:"], &["/z"]),
    ]);
}

#[test]
fn a_first_closing_bracket_is_a_member() {
    mean(&[
        ("/[]&&a]b", &["/ab", "/&b", "/]b"], &["/b"]),
        ("/[^]&&x]", &["/a"], &["/x", "/&", "/]"]),
        ("/[]-a]", &["/]", "/^", "/a"], &["/b", "/["]),
        ("/a]", &["/a]"], &["/a"]),
    ]);
}

#[test]
fn set_operators_are_characters() {
    mean(&[
        ("/[a-z&&b]", &["/a", "/&"], &["/-"]),
        ("/[a-c--b]", &["/a", "/-", "/A"], &["/d", "/,"]),
        ("/[a~~b]", &["/a", "/b", "/~"], &["/-"]),
        ("/[a-c-e]", &["/b", "/-", "/e"], &["/d"]),
        ("/[a-]", &["/a", "/-"], &["/b"]),
        (r"/[\d-z]", &["/5", "/-", "/z"], &["/a"]),
    ]);
}

#[test]
fn escaped_punctuation_is_itself() {
    mean(&[
        (r"/\<admin\>", &["/<admin>"], &["/admin"]),
        (r"/\_\-\/\ \&\#\~", &["/_-/ &#~"], &[]),
        (r"/\.\*\[\{", &["/.*[{"], &["/aaaa"]),
        (r"/[\]\^\-\\]", &["/]", "/^", "/-", r"/\"], &["/a"]),
        (r"/\ba\b", &["/a"], &["/ba"]),
    ]);
}

#[test]
fn a_brace_that_begins_no_count_is_itself() {
    mean(&[
        ("/users/{id}", &["/users/{id}"], &["/users/id"]),
        ("/a{", &["/a{"], &["/a"]),
        ("/a{1", &["/a{1"], &["/a"]),
        ("/a{,2}", &["/a{,2}"], &["/aa"]),
        ("/a{01}", &["/a{01}"], &["/a"]),
        ("/a{1,x}", &["/a{1,x}"], &["/a"]),
        ("/a}", &["/a}"], &[]),
        ("/a{2}b{1,}c{0,1}", &["/aabc", "/aabbb"], &["/abc", "/aac"]),
    ]);
}

#[test]
fn quotes_codes_and_properties_are_read() {
    mean(&[
        (r"/\Qa.b\E+", &["/a.b", "/a.bbb"], &["/axb"]),
        (r"/\Q(a|b", &["/(a|b"], &["/a"]),
        (r"/\Qa\b\E", &[r"/a\b"], &[]),
        (r"/\141\x62\x{63}", &["/abc"], &[]),
        (r"/\1012", &["/A2"], &[]),
        (r"/a\0", &["/a\0"], &["/a0"]),
        (r"/\pL\p{Lu}\p{Latin}", &["/aBc"], &["/abc", "/1Bc"]),
        (r"/\PL\P{^L}\p{^Lu}", &["/1ab"], &["/aab", "/1aB"]),
        (r"/[\pL\d]+[^\pL]", &["/a1-"], &["/-", "/a1b"]),
        (r"/\C", &["/a"], &["/"]),
        (r"/[\S]\D\W", &["/aa-"], &["/ a-", "/a1-"]),
        (r"/\s", &["/\t", "/ "], &["/\u{b}"]),
        ("/é+[à-ü]?", &["/éé", "/éö"], &["/e"]),
    ]);
}

#[test]
fn groups_and_flags_are_read() {
    mean(&[
        ("/(?i)AB|c", &["/ab", "C"], &["ab"]),
        ("/(?i:a)b", &["/Ab"], &["/AB"]),
        ("/(?-i)a(?is-i:b)(?)c", &["/abc"], &["/aBc"]),
        ("/(?ii)a", &["/A"], &[]),
        ("/(?U)a+(?s).", &["/aa\n"], &[]),
        ("/(?P<n>a)(?<m>b)(?:c)", &["/abc"], &[]),
        ("/(a*)*(?:b+)?(|c)", &["/", "/aab", "/c"], &["/ba"]),
        (r"\A^/$|/x\z", &["/", "/x"], &["/xx"]),
        ("/a*?b+?c??", &["/aab", "/bc"], &["/a"]),
    ]);
}

#[test]
fn what_re2_refuses_is_refused() {
    for (expression, why) in [
        ("(?x)/ a", "(?x)/ begins no group"),
        ("(?u)a", "begins no group"),
        ("(?R)a", "begins no group"),
        ("(?i-)a", "begins no group"),
        ("(?#note)a", "begins no group"),
        ("(?>a)", "begins no group"),
        ("(?P=n)", "begins no group"),
        ("(?=a)", "looks around"),
        ("(?<!a)", "looks around"),
        ("(?P<n>a)(?P<n>b)", "two groups are named n"),
        ("(?P<a-b>c)", "no name of a group"),
        ("a**", "repeats a repetition"),
        ("a+*", "repeats a repetition"),
        ("a*{2}", "repeats a repetition"),
        ("a{2}{3}", "repeats a repetition"),
        ("a*??", "repeats a repetition"),
        ("*a", "nothing to repeat"),
        ("a|+", "nothing to repeat"),
        ("(?:{2})", "nothing to repeat"),
        ("a{1001}", "more than 1000"),
        ("a{1001,}", "more than 1000"),
        ("((a{40}b){5}){6}", "more than 1000"),
        ("a{99999999999}", "more than 1000"),
        ("a{2,1}", "wrong order"),
        (r"(a)\1", "refers back"),
        (r"a\8", "refers back"),
        (r"a\Z", "no escape"),
        (r"a\E", "no escape"),
        (r"a\y", "no escape"),
        (r"\x4", "no escape"),
        (r"\x{110000}", "no escape"),
        (r"[a-\d]", "no escape"),
        (r"[\b]", "no escape"),
        ("a\\", "a backslash ends"),
        (r"\p{Letter}x\p{", "does not end"),
        (r"\p{greek}", "no script"),
        (r"\pX", "no category"),
        ("[z-a]", "wrong order"),
        ("[]", "not closed"),
        ("[^]", "not closed"),
        ("[a", "not closed"),
        ("[[:foo:]]", "no class"),
        ("(a", "not closed"),
        ("a)|(?:b", "closes nothing"),
    ] {
        let problem = translate(expression).expect_err(expression);
        assert!(problem.contains(why), "{expression}: {problem}");
    }
}

proptest! {
    /// Whatever is taken compiles, except for its size and for what is no script.
    #[test]
    fn no_text_panics_and_what_is_taken_compiles(
        expression in r"([\[\](){}|*+?^$.\\:<>=!,&~-]|[a-zA-ZQE0-9]|\\[a-zQEC0-9]|\(\?|\[\^|\[:|:\]|[éß]){0,12}",
    ) {
        if let Ok(translated) = translate(&expression) {
            let built = regex::bytes::RegexBuilder::new(&translated).unicode(false).build();
            if let Err(regex::Error::Syntax(problem)) = built {
                prop_assert!(problem.contains("property"), "{expression} became {translated}: {problem}");
            }
        }
    }

    #[test]
    fn an_expression_without_corners_means_the_same(
        expression in r"(([a-c/]|\.|\[[a-c]{1,3}\]|\[a-c\]|\((a|b/|c\.)(\|[a-c]{0,2})?\))[*+?]?\|?){1,6}",
        texts in prop::collection::vec("[a-d/]{0,6}", 1..8),
    ) {
        let translated = compiled(&translate(&expression).unwrap());
        let plain = compiled(&expression);
        for text in texts {
            prop_assert_eq!(translated.is_match(text.as_bytes()), plain.is_match(text.as_bytes()), "{}", text);
        }
    }
}
