"""All plugins that come with kdzoo. The engine reaches them through the hooks only."""
