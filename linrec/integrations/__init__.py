"""What makes other libraries' models run through linrec; nothing of them is imported before it is used."""
