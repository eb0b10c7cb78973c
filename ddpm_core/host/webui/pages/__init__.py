"""What stands in the WebUI's own pages: scripts, cards, axes of its plot, its output panel. Built upon the service."""
