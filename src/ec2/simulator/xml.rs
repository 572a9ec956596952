//! Answers in EC2's XML.

use std::fmt::Display;

use quick_xml::Writer;
use quick_xml::events::{BytesEnd, BytesStart, BytesText, Event};

use super::errors::Ec2Error;

const NAMESPACE: &str = "http://ec2.amazonaws.com/doc/2016-11-15/";

/// The inside of an answer, written from front to back.
pub(super) struct Xml {
    writer: Writer<Vec<u8>>,
}

impl Xml {
    pub(super) fn new() -> Self {
        Self {
            writer: Writer::new(Vec::new()),
        }
    }

    /// `<name>value</name>`.
    pub(super) fn text(&mut self, name: &str, value: impl Display) {
        self.write(Event::Start(BytesStart::new(name)));
        self.write(Event::Text(BytesText::new(&value.to_string())));
        self.write(Event::End(BytesEnd::new(name)));
    }

    /// The same, where there is a value.
    pub(super) fn optional(&mut self, name: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.text(name, value);
        }
    }

    /// An element with others inside.
    pub(super) fn group(&mut self, name: &str, inside: impl FnOnce(&mut Self)) {
        self.write(Event::Start(BytesStart::new(name)));
        inside(self);
        self.write(Event::End(BytesEnd::new(name)));
    }

    /// A list: one `<item>` for each.
    pub(super) fn items<T>(
        &mut self,
        name: &str,
        items: impl IntoIterator<Item = T>,
        mut each: impl FnMut(&mut Self, T),
    ) {
        self.group(name, |xml| {
            for item in items {
                xml.group("item", |xml| each(xml, item));
            }
        });
    }

    fn write(&mut self, event: Event<'_>) {
        self.writer
            .write_event(event)
            .expect("a vector takes everything");
    }

    fn into_bytes(self) -> Vec<u8> {
        self.writer.into_inner()
    }
}

/// The answer to a call that was carried out.
pub(super) fn answer(action: &str, request_id: &str, inside: Xml) -> Vec<u8> {
    let mut start = BytesStart::new(format!("{action}Response"));
    start.push_attribute(("xmlns", NAMESPACE));
    let end = start.to_end().into_owned();
    let mut xml = Xml::new();
    xml.write(Event::Start(start));
    xml.text("requestId", request_id);
    xml.writer.get_mut().extend(inside.into_bytes());
    xml.write(Event::End(end));
    xml.into_bytes()
}

/// The answer to a call that was not.
pub(super) fn error(error: &Ec2Error, request_id: &str) -> Vec<u8> {
    let mut xml = Xml::new();
    xml.group("Response", |xml| {
        xml.group("Errors", |xml| {
            xml.group("Error", |xml| {
                xml.text("Code", &error.code);
                xml.text("Message", &error.message);
            });
        });
        xml.text("RequestID", request_id);
    });
    xml.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_errors_have_ec2s_shape() {
        let mut inside = Xml::new();
        inside.items("tagSet", ["a<b", "c&d"], |xml, key| xml.text("key", key));
        inside.optional("nextToken", None::<&str>);

        assert_eq!(
            String::from_utf8(answer("DescribeTags", "r-1", inside)).unwrap(),
            "<DescribeTagsResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\">\
             <requestId>r-1</requestId><tagSet><item><key>a&lt;b</key></item>\
             <item><key>c&amp;d</key></item></tagSet></DescribeTagsResponse>"
        );
        let error_text = error(&Ec2Error::throttled(), "r-2");
        assert_eq!(
            String::from_utf8(error_text).unwrap(),
            "<Response><Errors><Error><Code>RequestLimitExceeded</Code>\
             <Message>Request limit exceeded.</Message></Error></Errors>\
             <RequestID>r-2</RequestID></Response>"
        );
    }
}
