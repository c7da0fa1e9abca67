"""All tables and figures by one command: the queue, the command, the pages that it writes."""
