"""Who somebody is and what that allows: roles, attributes, people and their groups, sign-in, SCIM, erasure."""
