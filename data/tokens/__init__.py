"""From texts and chats to tokens."""
