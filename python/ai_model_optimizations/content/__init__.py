"""The parts of `optimized_content_manager`; nothing here is public by itself.

`static_content` reads the file, `keywords` and `matcher` answer from it, `embedder` shares models,
`engine` puts caches in front of any plain manager, `serial_executor` runs calls that must not
block an event loop.
"""
