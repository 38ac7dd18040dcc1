"""Links of a company that were written for the existing conserver; nothing in here knows of another one."""
