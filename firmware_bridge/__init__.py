"""The console panel: wire protocol, serial link, GPIO panel and firmware."""
