"""The WebUI family as a host: AUTOMATIC1111, reForge, Forge. Only what is in here imports the WebUI's ``modules``.

What a host offers is looked for, not inferred from its name. Every name used here is listed for each host in
``tests/host_contract.json``; a test compares the two.
"""
