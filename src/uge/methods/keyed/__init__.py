"""Class waves that a frozen front-end of the authorised network takes out again."""
