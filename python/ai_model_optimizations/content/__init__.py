"""What `optimized_content_manager` is made of; nothing here is public by itself.

`static_content` reads the file, `keywords` and `matcher` answer from it, `embedder` shares models,
`engine` puts the caches before any plain manager, `lane` runs what must not block an event loop.
"""
