"""Who runs us. Only what is in here knows the WebUI or the standalone server; it is handed to what it serves."""
