"""The second screen: a local web page, in a process of its own."""
