"""What the user sees: tables and lines, drawn from plain facts."""
