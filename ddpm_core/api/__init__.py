"""HTTP routes: the page's own (``page``), and the public JSON API (``public``)."""
