"""What people look at: tables, figures, the report, the dashboard, exported students."""
